"""What nodes publish in shared memory: `rusty-db-cli stats` and `top`, `/metrics`, and a node that dies while it is watched."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
import urllib.request

import pytest

from conftest import BIN, Cluster


@pytest.fixture(scope="module")
def watched(folder):
    cluster = Cluster(folder / "watched", volume="256MiB", cache="16MiB").start()
    yield cluster
    cluster.stop()


def cli(*arguments, check=True):
    done = subprocess.run([str(BIN / "rusty-db-cli"), *arguments], capture_output=True, text=True, timeout=60)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files(cluster):
    """Where the nodes of this cluster publish: other clusters run on this machine, or have left files under numbers used again."""
    by_pid = {node["pid"]: node["source"] for node in json.loads(cli("stats", "--json", "--filter", "sessions")) if node.get("alive")}
    return {number: by_pid[pid] for number, pid in cluster.pids().items()}


def stats(path):
    (node,) = json.loads(cli("stats", "--json", "--file", path))
    return node


def value(node, name, labels=""):
    metrics = [metric for metric in node["metrics"] if metric["name"] == f"rustydb_{name}" and labels in metric["labels"]]
    assert metrics, name
    return sum(value.get("value", value.get("count")) for metric in metrics for value in metric["values"])


def test_what_clients_do_is_counted(watched):
    paths = files(watched)
    before = stats(paths[1])
    watched.psql(1, "create table counted (id int primary key, n int); insert into counted select i, 0 from generate_series(1, 500) i;")
    watched.psql(2, "update counted set n = n + 1;")
    watched.psql(1, "update counted set n = n + 1; select nope;", check=False)
    time.sleep(0.7)
    after = stats(paths[1])
    assert after["status"] == "serving" and after["members"] == "1-3" and after["alive"] and not after["torn"]
    grown = {name: value(after, name) - value(before, name) for name in ("statements_total", "statement_errors_total", "commits_total", "rows_written_total")}
    assert grown["statements_total"] >= 4 and grown["statement_errors_total"] == 1 and grown["commits_total"] >= 3
    assert grown["rows_written_total"] >= 1000
    for name in ("statement_seconds", "commit_seconds", "log_flush_seconds"):
        assert value(after, name) > value(before, name), name
    # Node 1 got its blocks back from node 2's memory.
    assert value(after, "block_request_seconds", "way") > value(before, "block_request_seconds", "way")
    assert value(after, "block_transfers_total") > value(before, "block_transfers_total")

    with urllib.request.urlopen(f"http://{watched.host(1)}:{watched.http}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    assert f'rustydb_cluster_quorum_members{{cluster="dev",node="node1"}} 3\n' in text
    (commits,) = re.findall(r'^rustydb_commits_total\{cluster="dev",node="node1",shard="0"\} (\d+)$', text, re.M)
    assert int(commits) >= value(after, "commits_total")
    # The same over HTTP as out of the file.
    (remote,) = json.loads(cli("stats", "--json", "--http", f"{watched.host(1)}:{watched.http}"))
    assert value(remote, "rows_written_total") == value(after, "rows_written_total")
    assert "rows_written_total" in cli("stats", "--file", paths[1])


class Screen:
    """`rusty-db-cli top` in a terminal of its own."""

    def __init__(self, *arguments, rows=24, columns=150):
        self.process, self.terminal = pty.fork()
        if self.process == 0:
            os.environ.update(TERM="xterm", NO_COLOR="1")
            os.execv(str(BIN / "rusty-db-cli"), ["rusty-db-cli", "top", *arguments])
        self.columns = columns
        self.resize(rows, columns)

    def resize(self, rows, columns):
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        os.kill(self.process, signal.SIGWINCH)

    def read(self, seconds):
        out, until = b"", time.monotonic() + seconds
        while time.monotonic() < until:
            if select.select([self.terminal], [], [], 0.05)[0]:
                try:
                    out += os.read(self.terminal, 65536)
                except OSError:
                    break
        return out

    def text(self, wanted, within=20):
        """What is shown, as soon as it has `wanted`. Only changes are sent, so a new size is given: then all of it is."""
        until, width, words = time.monotonic() + within, self.columns, ""
        while time.monotonic() < until:
            width = self.columns + self.columns % 2 + (width + 1) % 2
            self.resize(24, width)
            raw = self.read(0.8)
            words = " ".join(re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b" ", raw).decode(errors="replace").split())
            if re.search(wanted, words):
                return words
        raise AssertionError(f"{wanted} is not shown: {words}")

    def press(self, keys):
        os.write(self.terminal, keys)

    def end(self):
        self.press(b"q")
        rest = self.read(1)
        _, status = os.waitpid(self.process, 0)
        os.close(self.terminal)
        return os.waitstatus_to_exitcode(status), rest


def test_top_shows_a_node_that_dies_while_it_is_watched(watched):
    paths = files(watched)
    named = [argument for path in paths.values() for argument in ("--file", path)]
    screen = Screen("--interval", "0.2", *named)
    shown = screen.text(r"3 of 3 nodes serve")
    assert all(f"node{node} serving" in shown for node in watched.numbers()), shown
    screen.press(b"\r")
    assert "block_request" in screen.text("LATENCY")
    screen.press(b"\x1b")
    # A supervisor that sleeps does not start it again.
    os.kill(watched.process.pid, signal.SIGSTOP)
    try:
        os.kill(watched.pids()[3], signal.SIGKILL)
        shown = screen.text(r"2 of 3 nodes serve")
        assert re.search(r"node3 down [0-9]+ (ms|s)", shown), shown
        (dead,) = json.loads(cli("stats", "--json", "--file", paths[3]))
        assert dead["status"] == "down" and dead["stage"] == "serving" and value(dead, "log_flushes_total") > 0
        table = cli("top", "--once", "--interval", "0.3", *named)
        assert re.search(r"^node3 +down", table, re.M) and re.search(r"^node1 +serving", table, re.M), table
        assert [node["status"] for node in json.loads(cli("top", "--json", "--interval", "0.3", *named))["nodes"]][2] == "down"
    finally:
        os.kill(watched.process.pid, signal.SIGCONT)
    screen.text(r"3 of 3 nodes serve", within=60)
    status, rest = screen.end()
    assert status == 0 and b"\x1b[?1049l" in rest and b"\x1b[?25h" in rest, "the terminal is as it was"


def test_a_node_that_was_stopped_says_so(folder):
    cluster = Cluster(folder / "stopped", nodes=1, volume="256MiB", cache="16MiB").start()
    (path,) = files(cluster).values()
    pid = cluster.pids()[1]
    os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + 30
    while stats(path)["status"] != "stopped":
        assert time.monotonic() < until, stats(path)
        time.sleep(0.1)
    cluster.stop()
    # What a development cluster leaves in memory goes with it.
    assert not os.path.exists(path)
