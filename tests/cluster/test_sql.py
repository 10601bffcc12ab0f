"""SQL scripts whose output must be, to the letter, what PostgreSQL 15 prints."""

import difflib
import re
import subprocess
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parent.parent / "sql").glob("*.sql"))


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
