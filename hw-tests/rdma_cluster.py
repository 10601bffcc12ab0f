"""`rdma_cluster.py VOLUME ADDRESS ADDRESS ADDRESS`: three nodes whose Cache Fusion goes by RDMA, at these addresses of this machine's
devices, on a file in the folder VOLUME, or on a disk with reservations of which VOLUME says three paths, separated by commas.
pgbench on all of them; then RoCE's packets are lost while the clients go on, by what RUSTYDB_TEST_CUT has a shell do (and RUSTYDB_TEST_MEND
undo), where it is set; then a node is killed. No money is made or lost, and what went by RDMA was not copied."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request

from vm_cluster import BY_RESERVATIONS, OnDevices, settings

from conftest import wait_until
from test_pgbench import check_balances, on_all_nodes
from transfers import Transfers

AUTO = 'protocol = "auto"'
LOST = 3


class OverRdma(OnDevices):
    def __init__(self, volume, addresses):
        paths = volume.split(",")
        if len(paths) == 1:
            super().__init__(paths * len(addresses), settings('fencing_method = "process"', AUTO))
        else:
            super().__init__(paths, settings(BY_RESERVATIONS, AUTO))
        self.addresses = addresses

    def address_between_nodes(self, node):
        return self.addresses[node - 1]

    def lanes(self, node):
        """The peers that this node has reached by RDMA, as often as it did."""
        return re.findall(r"by RDMA from now on peer=node(\d)", self.log(node))

    def by_rdma(self, name):
        """What the interconnects of all nodes have counted for RDMA."""
        total = 0
        for node in self.numbers():
            with urllib.request.urlopen(f"http://{self.host(node)}:{self.http}/metrics", timeout=60) as answer:
                lines = re.findall(rf'^rustydb_interconnect_{name}_total{{.*transport="rdma".*}} (\d+)', answer.read().decode(), re.M)
            assert lines, f"node{node} does not count {name}"
            total += sum(map(int, lines))
        return total


def pgbench_everywhere(cluster, seconds, meanwhile=lambda: None):
    began = time.monotonic()
    options = ["-c", "2", "-j", "1", "-T", str(seconds), "-M", "prepared"]
    transactions = on_all_nodes(cluster, *options, meanwhile=meanwhile, within=300)
    check_balances(cluster)
    print(f"{transactions} transactions of pgbench in {time.monotonic() - began:.0f} s; the balances agree on all nodes", flush=True)


def lose_packets(cluster):
    time.sleep(3)
    subprocess.run(os.environ["RUSTYDB_TEST_CUT"], shell=True, check=True)
    wait_until(cluster, lambda: "not by RDMA" in cluster.log(1) and "not by RDMA" in cluster.log(2))


def bridge_a_partition(cluster):
    pgbench_everywhere(cluster, 20, lambda: lose_packets(cluster))
    print("RoCE's packets to a node were lost, and nobody noticed", flush=True)
    known = {node: len(cluster.lanes(node)) for node in cluster.numbers()}
    subprocess.run(os.environ["RUSTYDB_TEST_MEND"], shell=True, check=True)
    wait_until(cluster, lambda: all(len(cluster.lanes(node)) > known[node] for node in cluster.numbers()))
    print("back to RDMA", flush=True)


def main(volume, *addresses):
    cluster = OverRdma(volume, addresses).start()
    wait_until(cluster, lambda: all(len(set(cluster.lanes(node))) == 2 for node in cluster.numbers()))
    print(f"three nodes serve, all by RDMA, on {volume}", flush=True)
    cluster.pgbench(1, "-i", "-q", "-s", "1")
    pgbench_everywhere(cluster, 20)
    blocks, copied = cluster.by_rdma("blocks_sent"), cluster.by_rdma("block_bytes_copied")
    # Copied at both ends: where the place of an upgrade came too late or there was no free frame (docs/rdma.md), which is rare.
    share = copied / (2 * 8192 * blocks)
    print(f"{blocks} blocks by RDMA, {share:.1%} of them copied", flush=True)
    assert blocks > 100 and share < 0.05, (blocks, copied)

    if "RUSTYDB_TEST_CUT" in os.environ:
        bridge_a_partition(cluster)
    else:
        print("RUSTYDB_TEST_CUT, what loses RoCE's packets here, is not set: no partition", flush=True)

    load = Transfers(cluster, [1, 2, 3], each=1).start()
    wait_until(cluster, lambda: all(len(client.done_at) > 3 for client in load.clients))
    cluster.processes[LOST].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    wait_until(cluster, lambda: cluster.members(1) == ["node1", "node2"])
    wait_until(cluster, lambda: all(client.done_at[-1] > killed + 5 for client in load.of(1, 2)))
    for client in load.of(1, 2):
        assert not client.errors, f"{client.errors[:3]}\n{cluster.logs()}"
    print("killed; the others have recovered it and go on", flush=True)
    known = {node: len(cluster.lanes(node)) for node in cluster.numbers()}
    cluster.processes[LOST].wait()
    cluster.start_node(LOST)
    wait_until(cluster, lambda: all(len(cluster.members(node)) == 3 for node in cluster.numbers()), 400)
    wait_until(cluster, lambda: all(len(cluster.lanes(node)) > known[node] for node in cluster.numbers()))
    load.stop()
    load.check(cluster.numbers())
    check_balances(cluster)
    print(f"back by RDMA; {sum(len(client.acknowledged) for client in load.clients)} acknowledged transfers are all there")
    cluster.stop()


main(*sys.argv[1:])
