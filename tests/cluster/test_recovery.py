"""One node of three dies, hangs or loses its disk: the others go on, nothing acknowledged is lost, and it comes back."""

import os
import signal
import subprocess
import time

import pytest
from conftest import wait_until
from stalls import Stall
from transfers import Transfers


@pytest.fixture
def load(cluster):
    """Transfers on all nodes; the test ends when they have been checked."""
    transfers = Transfers(cluster, [1, 2, 3]).start()
    time.sleep(1)
    yield transfers
    transfers.stop()
    transfers.check(cluster.numbers())


def epoch(cluster, node):
    return cluster.health(node)["epoch"]


def until_reborn(cluster, node, pid):
    """Its next life may be a member again before anybody has seen the view without it: what stays is looked at."""
    wait_until(cluster, lambda: cluster.health(node).get("pid", pid) != pid)


def survivors_go_on(cluster, load, lost, since):
    """Clients of the other nodes wait for a moment and see no error; the lost node comes back by itself."""
    others = [node for node in cluster.numbers() if node != lost]
    clients = load.of(*others)
    wait_until(cluster, lambda: all(client.done_at and client.done_at[-1] > since + 0.5 for client in clients))
    wait_until(cluster, lambda: all(cluster.health(node).get("status") == "healthy" for node in cluster.numbers()))
    wait_until(cluster, lambda: all(len(cluster.health(node)["members"]) == 3 for node in cluster.numbers()))
    for client in clients:
        assert not client.errors, f"{client.errors[:3]}\n{cluster.logs()}"
    print(f"longest wait of a client: {max(client.longest_wait(since, time.monotonic()) for client in clients):.2f} s")


@pytest.mark.parametrize("lost", [3, 1])
def test_kill_one(cluster, load, lost):
    before, pid = epoch(cluster, 2), cluster.pids()[lost]
    os.kill(pid, signal.SIGKILL)
    survivors_go_on(cluster, load, lost, time.monotonic())
    assert cluster.health(lost)["pid"] != pid
    # One epoch without it, one with it again.
    assert epoch(cluster, 2) >= before + 2


def test_a_node_that_was_stopped_is_fenced_and_joins_again(cluster, load):
    before, pid = epoch(cluster, 1), cluster.pids()[2]
    since = time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    try:
        until_reborn(cluster, 2, pid)
    finally:
        # It was declared dead and killed meanwhile: its signal finds nobody, or somebody who is dying.
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            pass
    survivors_go_on(cluster, load, 2, since)
    assert epoch(cluster, 1) >= before + 2


def test_a_node_whose_volume_fails_ends_and_the_others_go_on(cluster, load):
    pid = cluster.pids()[3]
    since = time.monotonic()
    # Every write of this process beyond the first block fails from now on, as on a path that is gone.
    subprocess.run(["prlimit", f"--pid={pid}", "--fsize=4096:4096"], check=True)
    until_reborn(cluster, 3, pid)
    survivors_go_on(cluster, load, 3, since)


def test_a_node_whose_disk_stalls_is_found_and_nothing_it_wrote_is_lost(cluster, load):
    """Its requests hang and neither fail nor come back, so its connections are as good as ever."""
    pid = cluster.pids()[3]
    volume = cluster.folder / "rustydb.volume"
    logs = [cluster.folder / f"node{node}.log" for node in (1, 2)]
    old = [log.stat().st_size for log in logs]
    with Stall(pid, volume) as stall:
        stall.begin()
        since = time.monotonic()
        new = lambda: "".join(log.read_bytes()[size:].decode(errors="replace") for log, size in zip(logs, old))
        wait_until(cluster, lambda: "stands still" in new())
        print(f"suspected after {time.monotonic() - since:.2f} s")
        # Its process is killed, but what hangs may still reach the disk: nobody goes on before that has ended.
        time.sleep(2)
        assert cluster.health(1).get("members") == ["node1", "node2", "node3"]
        stall.end()
        survivors_go_on(cluster, load, 3, time.monotonic())


def test_all_nodes_one_after_the_other(cluster, load):
    for lost in cluster.numbers():
        pid = cluster.pids()[lost]
        os.kill(pid, signal.SIGKILL)
        since = time.monotonic()
        until_reborn(cluster, lost, pid)
        wait_until(cluster, lambda: all(len(cluster.health(node).get("members", [])) == 3 for node in cluster.numbers()))
        wait_until(cluster, lambda: all(client.done_at[-1] > since for client in load.clients))
