"""Clusters in the virtual machine and on real devices: nodes with configuration files of their own, on devices instead of a file. The
machine's processor is emulated: everything has ten times as long as elsewhere."""

import sys
import tempfile
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).parent.parent / "tests/cluster"))
from by_hand import ByHand


def settings(ha, interconnect=""):
    """A node's times, and what else is in its sections: `ha` may go on with others."""
    return (
        f"[rac.interconnect]\nheartbeat_interval = 1000\nheartbeat_timeout = 8000\n{interconnect}\n"
        f"[ha]\ndisk_heartbeat_interval = 1000\ndisk_timeout = 15000\n{ha}\n"
    )


# On a disk with reservations.
BY_RESERVATIONS = 'fencing_method = "persistent_reservation"\nread_lease = 4000'
RESERVATIONS = settings(BY_RESERVATIONS)


class OnDevices(ByHand):
    """One node for each of `disks`, which are ways to the same device."""

    cache = 16 << 20
    patience = 200

    def __init__(self, disks, settings):
        super().__init__(Path(tempfile.mkdtemp(prefix="rustydb-cluster-")) / "cluster", len(disks), settings)
        self.disks = disks

    def volume(self, node):
        return self.disks[node - 1]

    def start(self):
        self.format()
        self.configure()
        for node in self.numbers():
            self.start_node(node)
        self.wait_healthy(300)
        return self

    def format(self):
        # On a real device there is what the test before has left, of which nothing is wanted (`run` has asked what was there at first).
        force = ["--force"] if Path(self.volume(1)).is_block_device() else []
        super().format("--max-nodes", str(self.nodes), "--volume-size", "512MiB", *force)

    def configure(self):
        self.folder.mkdir()
        super().configure()

    def log(self, node):
        return (self.folder / f"node{node}.log").read_text(errors="replace")

    def members(self, node):
        return self.health(node).get("members", [])

    def stop(self):
        for process in self.processes.values():
            process.terminate()
        ended = {node: process.wait(200) for node, process in self.processes.items()}
        assert not any(ended.values()), f"{ended}\n{self.logs()}"
