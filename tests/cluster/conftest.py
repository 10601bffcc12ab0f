"""A real cluster of three processes on loopback, started as a person starts it: `rusty-db-server dev`."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

BIN = Path(os.environ["RUSTYDB_BIN"])
PG_BIN = Path("/usr/lib/postgresql/15/bin")


def free_port():
    """A port that is free on 127.0.0.1 to 127.0.0.4, and that the kernel gives to no outgoing connection."""
    while True:
        port = random.randrange(20000, 32000)
        sockets = []
        try:
            for host in (1, 2, 3, 4):
                s = socket.socket()
                sockets.append(s)
                s.bind((f"127.0.0.{host}", port))
            return port
        except OSError:
            continue
        finally:
            for s in sockets:
                s.close()


class Cluster:
    """One `rusty-db-server dev`, its folder and its ports."""

    # For how many seconds what is waited for may take.
    patience = 60

    def __init__(self, folder, nodes=3, volume="512MiB", cache="64MiB", extra=()):
        self.folder = Path(folder)
        self.nodes = nodes
        self.pg, self.http, self.interconnect = free_port(), free_port(), free_port()
        self.arguments = [
            str(BIN / "rusty-db-server"), "dev", "--nodes", str(nodes), "--data-dir", str(self.folder),
            "--volume-size", volume, "--cache-size", cache, "--pg-port", str(self.pg), "--http-port", str(self.http),
            "--interconnect-port", str(self.interconnect), *extra,
        ]
        self.process = None

    def start(self):
        self.output = open(self.folder.parent / f"{self.folder.name}-supervisor.log", "ab")
        self.process = subprocess.Popen(self.arguments, stdout=self.output, stderr=subprocess.STDOUT)
        self.wait_healthy()
        return self

    def wait_healthy(self, within=120):
        until = time.monotonic() + within
        while time.monotonic() < until:
            assert self.process.poll() is None, f"the supervisor ended: {self.logs()}"
            if all(self.health(node).get("status") == "healthy" for node in self.numbers()):
                return
            time.sleep(0.05)
        raise AssertionError(f"not healthy within {within} s: {self.logs()}")

    def host(self, node):
        return f"127.0.0.{node}"

    def numbers(self):
        return range(1, self.nodes + 1)

    def health(self, node):
        try:
            with urllib.request.urlopen(f"http://{self.host(node)}:{self.http}/api/v1/health", timeout=2) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            return json.load(error)
        except OSError:
            return {}

    def pids(self):
        return {node: self.health(node)["pid"] for node in self.numbers()}

    def stop(self, patience=90):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            assert self.process.wait(patience) == 0, self.logs()
        self.process = None

    def kill(self):
        """kill -9 of every process at once, as when the power goes."""
        pids = list(self.pids().values())
        for pid in [self.process.pid, *pids]:
            os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.process = None
        for pid in pids:
            while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
                time.sleep(0.01)

    def logs(self):
        texts = [self.folder.parent / f"{self.folder.name}-supervisor.log", *sorted(self.folder.glob("node*.log"))]
        return "\n".join(f"--- {p.name}\n{p.read_text(errors='replace')[-3000:]}" for p in texts if p.exists())

    def address(self, node):
        return {"host": self.host(node), "port": self.pg}

    def cli(self, *words, nodes=None, check=True):
        """What `rusty-db-cli` says, told of these nodes: of all if none are named."""
        addresses = [word for node in nodes or self.numbers() for word in ("--http", f"{self.host(node)}:{self.http}")]
        done = subprocess.run([BIN / "rusty-db-cli", *words, *addresses], capture_output=True, text=True, timeout=90)
        assert not check or done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}\n{self.logs()}"
        return done.stdout + done.stderr

    def url(self, node):
        return f"host={self.host(node)} port={self.pg} user=postgres dbname=postgres connect_timeout=10"

    def psql(self, node, sql, *options, check=True, timeout=60):
        done = subprocess.run(
            ["psql", "-X", "-v", "ON_ERROR_STOP=1", *options, self.url(node)],
            input=sql, capture_output=True, text=True, timeout=timeout, env=os.environ | {"PGOPTIONS": ""},
        )
        assert not check or done.returncode == 0, f"{sql}\n{done.stdout}{done.stderr}\n{self.logs()}"
        return done.stdout if check else done

    def value(self, node, sql):
        return self.psql(node, sql, "-At").strip()

    def pgbench(self, node, *options, timeout=300, wait=True):
        command = [str(PG_BIN / "pgbench"), "-h", self.host(node), "-p", str(self.pg), "-U", "postgres", *options, "postgres"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if not wait:
            return process
        out, _ = process.communicate(timeout=timeout)
        assert process.returncode == 0, f"{command}\n{out}\n{self.logs()}"
        return out


def wait_until(cluster, what, within=None):
    until = time.monotonic() + (within or cluster.patience)
    while not what():
        assert time.monotonic() < until, cluster.logs()
        time.sleep(0.02)


@contextmanager
def running(folder, **how):
    """A cluster that is stopped when it is not needed any more, unless the test has ended it."""
    started = Cluster(folder, **how)
    started.folder.mkdir()
    started.start()
    yield started
    if started.process:
        started.stop()


def refusal(*arguments):
    """What the server says to arguments, or settings, that it does not take."""
    done = subprocess.run([BIN / "rusty-db-server", *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    return done.stderr


@pytest.fixture(scope="session")
def folder():
    with tempfile.TemporaryDirectory(prefix="rustydb-test-") as path:
        yield Path(path)


@pytest.fixture(scope="module")
def cluster(folder, request):
    """Three nodes for the tests of one file."""
    name = request.module.__name__.rpartition(".")[2]
    with running(folder / name) as started:
        yield started


@pytest.fixture(scope="module")
def postgres(folder, request):
    """A PostgreSQL of our own on 127.0.0.1 for the tests of one file, as an unprivileged user when we are root."""
    data, port = folder / f"postgres-{request.module.__name__}", free_port()
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
