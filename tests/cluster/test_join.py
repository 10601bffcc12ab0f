"""The cluster's nodes change while clients work: a fourth comes in, a founder leaves for good, and nobody loses anything."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import BIN, wait_until
from transfers import Client, Transfers

NODE4 = "node4"
# A node that is none of the cluster's, or no more: its supervisor is not to start it again.
REMOVED = 77


def cli(cluster, *words, nodes=(1, 2, 3, 4), check=True):
    return cluster.cli(*words, nodes=nodes, check=check)


def serve_together(cluster, *nodes):
    names = [f"node{node}" for node in nodes]
    healths = [cluster.health(node) for node in nodes]
    return all(health.get("status") == "healthy" and health["members"] == names for health in healths)


class Server:
    """One node that is not the supervisor's."""

    def __init__(self, cluster, node):
        self.cluster, self.node = cluster, node
        self.log = open(cluster.folder / f"node{node}.log", "ab")
        command = [BIN / "rusty-db-server", "--config", cluster.folder / f"node{node}.toml"]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)

    def status(self, within=30):
        status = self.process.wait(within)
        return status, Path(self.log.name).read_text(errors="replace")[-2000:]

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            assert self.process.wait(60) == 0, self.cluster.logs()


@pytest.fixture
def servers():
    started = []
    yield started
    for server in started:
        if server.process.poll() is None:
            server.kill()


def test_a_node_joins_and_a_founder_leaves_under_load(cluster, servers):
    load = Transfers(cluster, [1, 2, 3], roams=True).start()
    file = cluster.folder / "node4.toml"
    init = ["node", "init", "--node-id", NODE4, "--from", f"{cluster.host(1)}:{cluster.http}", "--output", str(file)]
    done = subprocess.run([BIN / "rusty-db-cli", *init], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    again = subprocess.run([BIN / "rusty-db-cli", *init], capture_output=True, text=True)
    assert again.returncode == 1 and "--force" in again.stderr, "it writes over nothing"

    # Whoever was not admitted is told what to do.
    status, words = Server(cluster, 4).status()
    assert status == REMOVED and "cluster join --node-id NODE" in words, (status, words)
    assert "node4 is admitted" in cli(cluster, "cluster", "join", "--config", str(file))
    assert "already" in cli(cluster, "cluster", "join", "--config", str(file))
    assert "joining" in cli(cluster, "cluster", "status", nodes=(1, 2, 3))

    # It dies in the middle of its coming, at different moments.
    for _ in range(4):
        server = Server(cluster, 4)
        servers.append(server)
        time.sleep(random.uniform(0.05, 0.8))
        server.kill()
    servers.append(Server(cluster, 4))

    def it_comes():
        # Whoever fences its last life may take the next one's process, which holds the node's lock already, for it.
        if servers[-1].process.poll() is not None:
            servers.append(Server(cluster, 4))
        return serve_together(cluster, 1, 2, 3, 4)

    wait_until(cluster, it_comes)
    load.clients.append(Client(cluster, 4, 400))
    load.clients[-1].start()
    control = lambda node: (cluster.health(node).get("control") or {}).get("voters")
    wait_until(cluster, lambda: control(2) == ["node1", "node2", "node3", "node4"])
    joined = time.monotonic()
    wait_until(cluster, lambda: all(client.done_at and client.done_at[-1] > joined for client in load.clients))

    # A founder leaves: not while it serves.
    refused = cli(cluster, "cluster", "remove", "node1", check=False)
    assert "node drain node1" in refused, refused
    pid = cluster.health(1)["pid"]
    cli(cluster, "node", "drain", "node1", "--timeout", "10")
    assert "node1 is removed" in cli(cluster, "cluster", "remove", "node1")
    assert not os.path.exists(f"/proc/{pid}") or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    wait_until(cluster, lambda: serve_together(cluster, 2, 3, 4))
    removed = time.monotonic()
    wait_until(cluster, lambda: all(client.done_at[-1] > removed for client in load.clients))
    status, words = Server(cluster, 1).status()
    assert status == REMOVED and "was removed from the cluster" in words, (status, words)
    assert "never used" in cli(cluster, "cluster", "join", "--node-id", "node1", "--address", "127.0.0.9:7433", check=False)
    wait_until(cluster, lambda: control(2) == ["node2", "node3", "node4"])
    load.stop()
    for client in load.clients:
        assert not client.errors, f"{client.errors[:3]}\n{cluster.logs()}"
    load.check([2, 3, 4])

    # All stop and start again. The files of node2 and node3 still name node1 and have never heard of node4.
    servers[-1].stop()
    cluster.stop()
    assert "node1" in (cluster.folder / "node2.toml").read_text() and NODE4 not in (cluster.folder / "node2.toml").read_text()
    cluster.output = open(cluster.folder.parent / f"{cluster.folder.name}-supervisor.log", "ab")
    cluster.process = subprocess.Popen(cluster.arguments, stdout=cluster.output, stderr=subprocess.STDOUT)
    servers.append(Server(cluster, 4))
    wait_until(cluster, lambda: serve_together(cluster, 2, 3, 4))
    load.check([2, 3, 4])
    picture = json.loads(cli(cluster, "cluster", "status", "--json", nodes=(2, 3, 4)))
    assert [row["health"]["Ok"]["configured"] if "Ok" in row["health"] else row["health"] for row in picture] == [["node2", "node3", "node4"]] * 3

    # One that serves is removed by force; it is fenced first, and its supervisor leaves it alone afterwards.
    assert "node2 is removed" in cli(cluster, "cluster", "remove", "node2", "--force", nodes=(3, 4))
    wait_until(cluster, lambda: serve_together(cluster, 3, 4))
    wait_until(cluster, lambda: "node2 is not started again" in cluster.logs())
    load.check([3, 4])
    servers[-1].stop()
