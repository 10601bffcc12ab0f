"""Three nodes in network namespaces of their own on one bridge: one is cut off, suspended, and comes back."""

import ctypes
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request

import psycopg
import pytest
from by_hand import ByHand
from conftest import wait_until
from transfers import Transfers

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


def ip(*words):
    subprocess.run(["ip", *words], check=True)


LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000


def check(result):
    assert result == 0, os.strerror(ctypes.get_errno())


class Namespaces(ByHand):
    """Nodes started by hand, each in a network namespace, on two bridges: one for the nodes, one for clients. The bridges and
    the test itself (this thread, and those that it starts) are in a namespace of their own."""

    def __init__(self, folder, settings=""):
        super().__init__(folder, 3, settings)
        self.name = f"rdb{os.getpid() % 10000}"

    def __enter__(self):
        self.folder.mkdir()
        try:
            return self.set_up()
        except BaseException:
            self.__exit__()
            raise

    def set_up(self):
        self.before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        check(LIBC.unshare(CLONE_NEWNET))
        ip("link", "set", "lo", "up")
        for bridge in ("nodes", "clients"):
            ip("link", "add", bridge, "type", "bridge")
            ip("link", "set", bridge, "up")
        ip("addr", "add", "10.213.78.100/24", "dev", "clients")
        for node in self.numbers():
            space = f"{self.name}-{node}"
            ip("netns", "add", space)
            ip("-n", space, "link", "set", "lo", "up")
            for bridge, net in (("nodes", 77), ("clients", 78)):
                ip("link", "add", f"{bridge}{node}", "type", "veth", "peer", "name", bridge, "netns", space)
                ip("link", "set", f"{bridge}{node}", "master", bridge, "up")
                ip("-n", space, "addr", "add", f"10.213.{net}.{node}/24", "dev", bridge)
                ip("-n", space, "link", "set", bridge, "up")
        self.format("--volume-size", "256MiB")
        self.configure()
        for node in self.numbers():
            self.start_node(node)
        self.wait_healthy()
        return self

    def command(self, node):
        return ["ip", "netns", "exec", f"{self.name}-{node}", *super().command(node)]

    def address_between_nodes(self, node):
        return f"10.213.77.{node}"

    def host(self, node):
        return f"10.213.78.{node}"

    def cut(self, node):
        """Pulls its cable to the other nodes; clients still reach it."""
        ip("link", "set", f"nodes{node}", "nomaster")

    def heal(self, node):
        ip("link", "set", f"nodes{node}", "master", "nodes")

    def __exit__(self, *_):
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
        for node in self.numbers():
            subprocess.run(["ip", "netns", "del", f"{self.name}-{node}"], check=False)
        check(LIBC.setns(self.before, CLONE_NEWNET))
        os.close(self.before)


def serve(cluster):
    """Whether all serve together; who has ended is started again, as a supervisor does."""
    for node, process in cluster.processes.items():
        if process.poll() is not None:
            assert process.returncode != 0, cluster.logs()
            cluster.start_node(node)
    health = [cluster.health(node) for node in cluster.numbers()]
    return all(one.get("status") == "healthy" and len(one["members"]) == 3 for one in health)


def operators_are_served_on_the_spot_only(cluster):
    """From another machine anybody may ask how a node is, and nobody may tell it what to do."""
    asked = ["node/stop", "node/drain/1", "node/undrain", "node/fence/node2", "node/fence/node2/confirm", "cluster/remove/node2", "cluster/remove/node2/force",
             "cluster/join/node4/10.213.77.4:7433"]
    for method, path in [("GET", "node/config"), *(("POST", path) for path in asked)]:
        request = urllib.request.Request(f"http://{cluster.host(1)}:{cluster.http}/api/v1/{path}", method=method)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=10)
        assert (refused.value.code, b"own machine" in refused.value.read()) == (403, True), path
    assert cluster.health(1)["status"] == "healthy"


BOUNDED = {"connect_timeout": 5, "tcp_user_timeout": 5000}
FAST = "[rac.interconnect]\nheartbeat_interval = 200\nheartbeat_timeout = 1000\n"


def test_a_node_that_is_cut_off_is_fenced_and_joins_again(folder):
    with Namespaces(folder / "partition", FAST) as cluster:
        operators_are_served_on_the_spot_only(cluster)
        load = Transfers(cluster, [1, 2, 3]).start()
        time.sleep(1)
        cluster.cut(3)
        since = time.monotonic()
        wait_until(cluster, lambda: cluster.health(1).get("members") == ["node1", "node2"])
        wait_until(cluster, lambda: all(client.done_at[-1] > since + 2 for client in load.of(1, 2)))
        assert cluster.processes[3].wait(20) != 0
        cluster.heal(3)
        cluster.start_node(3)
        wait_until(cluster, lambda: all(len(cluster.health(node).get("members", [])) == 3 for node in cluster.numbers()))
        wait_until(cluster, lambda: all(client.done_at and client.done_at[-1] > since + 2 for client in load.clients))
        load.stop()
        for client in load.of(1, 2):
            assert not client.errors, f"{client.errors[:3]}\n{cluster.logs()}"
        load.check(cluster.numbers())


def test_without_a_quorum_clients_are_told_why_and_all_goes_on_when_the_network_is_back(folder):
    with Namespaces(folder / "nobody", FAST) as cluster:
        cluster.psql(1, "create table kept(id int primary key, v int); insert into kept values (1, 0)")
        holder = psycopg.connect(cluster.url(1), autocommit=True, **BOUNDED)
        holder.execute("begin")
        holder.execute("update kept set v = 1 where id = 1")
        # It waits for that row when all cables are pulled.
        waits = subprocess.Popen(
            ["timeout", "60", "psql", "-X", "-v", "VERBOSITY=verbose", cluster.url(3), "-c", "update kept set v = 2 where id = 1"],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        time.sleep(0.5)
        for node in cluster.numbers():
            cluster.cut(node)
        for node in cluster.numbers():
            wait_until(cluster, lambda: cluster.health(node).get("status") == "suspended")
            assert "1 of 3" in cluster.health(node)["detail"]
            with pytest.raises(psycopg.Error) as refused:
                # Bounded: a node that does not answer fails the test, and does not hang it.
                with psycopg.connect(cluster.url(node), autocommit=True, **BOUNDED) as connection:
                    connection.execute("select * from kept")
            assert refused.value.sqlstate == "57P03" and "1 of 3" in str(refused.value), refused.value
        _, words = waits.communicate(timeout=20)
        assert "57P03" in words and "1 of 3" in words, words
        # It has not committed and is told so.
        with pytest.raises(psycopg.Error) as refused:
            holder.execute("commit")
        assert refused.value.sqlstate == "57P03", refused.value
        for node in cluster.numbers():
            cluster.heal(node)
        # Two that reach each other before they reach the third may go on without it; then its next life joins.
        wait_until(cluster, lambda: serve(cluster))
        for node in cluster.numbers():
            assert cluster.value(node, "select v from kept") == "0"
        cluster.psql(3, "insert into kept values (2, 0)")
