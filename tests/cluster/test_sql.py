"""SQL scripts whose output must be, to the letter, what PostgreSQL 15 prints."""

import difflib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from conftest import PG_BIN, free_port

SCRIPTS = sorted((Path(__file__).parent.parent / "sql").glob("*.sql"))


@pytest.fixture(scope="module")
def postgres(folder):
    """A PostgreSQL of our own on 127.0.0.1, as an unprivileged user when we are root."""
    data, port = folder / "postgres", free_port()
    data.mkdir()
    as_user = []
    if os.geteuid() == 0:
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]
        folder.chmod(0o755)
        shutil.chown(data, "postgres", "postgres")
    quiet = {"check": True, "stdout": subprocess.DEVNULL}
    subprocess.run([*as_user, PG_BIN / "initdb", "-D", data / "db", "-U", "postgres", "-A", "trust", "--no-locale", "-E", "UTF8"], **quiet)
    server = subprocess.Popen([*as_user, PG_BIN / "postgres", "-D", data / "db", "-h", "127.0.0.1", "-p", str(port), "-k", data], stderr=subprocess.DEVNULL)
    try:
        subprocess.run(["timeout", "30", "sh", "-c", f"until {PG_BIN}/pg_isready -q -h 127.0.0.1 -p {port}; do sleep 0.1; done"], check=True)
        yield f"host=127.0.0.1 port={port} user=postgres dbname=postgres"
    finally:
        server.terminate()
        server.wait(30)


def run(url, script):
    done = subprocess.run(["psql", "-X", "-a", "-q", url, "-f", script], capture_output=True, text=True, timeout=120)
    text = re.sub(r"psql:[^:]*:\d+: ", "", done.stdout + "\n--- errors\n" + done.stderr)
    # Where in a statement an error was found is a convenience that we don't always have.
    return [line.rstrip() for line in text.splitlines() if not re.match(r"LINE \d+:|\s+\^|HINT:", line)]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_same_as_postgresql(cluster, postgres, script):
    expected, got = run(postgres, script), run(cluster.url(1), script)
    difference = "\n".join(difflib.unified_diff(expected, got, "PostgreSQL", "RustyDB", lineterm="", n=2))
    assert not difference, difference
