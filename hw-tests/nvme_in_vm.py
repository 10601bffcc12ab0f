"""In the virtual machine: two nodes on one NVMe disk, each by another way in every round; killed in the middle of transfers, and
recovered by nodes that go by yet other ways. What was acknowledged is there."""

import signal
import sys
import time

from vm_cluster import OnDevices, settings

from conftest import wait_until
from transfers import Transfers

SETTINGS = settings("""
fencing_method = "lease"
[ha.fencing]
watchdog = "off"
""")
WAYS = {
    "plain": ("", None),
    "polled": ("polled_io = true\n", "the block layer, polled"),
    "passthrough": ("nvme_passthrough = true\n", "NVMe commands to /dev/ng0n1, by interrupts"),
    "polled passthrough": ("polled_io = true\nnvme_passthrough = true\n", "NVMe commands to /dev/ng0n1, polled"),
}
ROUNDS = [
    ("plain", "plain"),
    ("passthrough", "polled"),
    ("polled passthrough", "passthrough"),
    ("polled", "polled passthrough"),
    ("plain", "plain"),
]
TRANSFERS = 30


class ByWays(OnDevices):
    def go_by(self, ways):
        """Has the nodes go by these ways from their next start on."""
        self.ways = dict(zip(self.numbers(), ways))
        for node, way in self.ways.items():
            path = self.folder / f"node{node}.toml"
            lines = [line for line in path.read_text().splitlines() if not line.startswith(("polled_io", "nvme_passthrough"))]
            path.write_text("\n".join(lines).replace("[rac.storage]\n", "[rac.storage]\n" + WAYS[way][0]) + "\n")

    def start_all(self):
        for node in self.numbers():
            (self.folder / f"node{node}.log").write_text("")
            self.start_node(node)
        self.wait_healthy(300)
        for node, way in self.ways.items():
            said = WAYS[way][1]
            assert said is None or f"reads and writes of the volume go by {said}" in self.log(node), self.logs()
            assert "goes without what its settings ask for" not in self.log(node), self.logs()

    def kill_all(self):
        for process in self.processes.values():
            process.send_signal(signal.SIGKILL)
        for process in self.processes.values():
            process.wait()


def main(disk):
    cluster = ByWays([disk] * 2, SETTINGS).start()
    assert "lies on reserved huge pages" in cluster.log(1), cluster.logs()
    for ways, after in zip(ROUNDS, ROUNDS[1:]):
        began = time.monotonic()
        load = Transfers(cluster, [1, 2], each=2).start()
        wait_until(cluster, lambda: all(len(client.acknowledged) >= TRANSFERS for client in load.clients))
        for client in load.clients:
            assert not client.errors, f"{client.errors[:3]}\n{cluster.logs()}"
        cluster.kill_all()
        load.stop()
        cluster.go_by(after)
        cluster.start_all()
        load.check(cluster.numbers())
        acknowledged = sum(len(client.acknowledged) for client in load.clients)
        print(
            f"written by {' and '.join(ways)}, killed, recovered by {' and '.join(after)}: {acknowledged} acknowledged transfers are "
            f"all there ({time.monotonic() - began:.0f} s)",
            flush=True,
        )
    cluster.stop()


main(sys.argv[1])
