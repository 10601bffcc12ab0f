"""Fencing by leases alone, as on a disk without reservations and hosts that share nothing else: who can't renew its lease
stops by itself, and the others wait for that."""

import os
import re
import signal
import time

import pytest
from conftest import wait_until
from test_partition import FAST, Namespaces
from transfers import Transfers

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

LEASE = '[ha]\nfencing_method = "lease"\n[ha.fencing]\nlease = 2000\nlease_margin = 1500\nwatchdog = "off"\n'


def stand_still(cluster):
    """SIGSTOP, for as long as the others need to go on; then it wakes up with writes under way."""
    os.kill(cluster.processes[3].pid, signal.SIGSTOP)
    yield
    os.kill(cluster.processes[3].pid, signal.SIGCONT)


def cut_off(cluster):
    """Its disk answers, its peers don't."""
    cluster.cut(3)
    yield
    cluster.heal(3)


@pytest.mark.parametrize("lose", [stand_still, cut_off])
def test_a_node_that_is_lost_stops_by_itself_before_the_others_go_on(folder, lose):
    with Namespaces(folder / lose.__name__, FAST + LEASE) as cluster:
        load = Transfers(cluster, [1, 2, 3]).start()
        time.sleep(1)
        loss = lose(cluster)
        since = time.monotonic()
        next(loss)
        wait_until(cluster, lambda: cluster.health(1).get("members") == ["node1", "node2"])
        wait_until(cluster, lambda: all(client.done_at[-1] > since + 3 for client in load.of(1, 2)))
        gone_on = cluster.processes[3].poll()
        next(loss, None)
        # A node that was cut off knew before: its heartbeats on the disk found that it was evicted.
        assert (gone_on is None) == (lose is stand_still), cluster.logs()
        assert cluster.processes[3].wait(20) == 75, cluster.logs()
        assert re.search("lease .* has run out|has evicted this life", (cluster.folder / "node3.log").read_text()), cluster.logs()
        cluster.start_node(3)
        wait_until(cluster, lambda: all(len(cluster.health(node).get("members", [])) == 3 for node in cluster.numbers()))
        back = time.monotonic()
        wait_until(cluster, lambda: all(client.done_at and client.done_at[-1] > back for client in load.clients))
        load.stop()
        for client in load.of(1, 2):
            assert not client.errors, f"{client.errors[:3]}\n{cluster.logs()}"
        load.check(cluster.numbers())
