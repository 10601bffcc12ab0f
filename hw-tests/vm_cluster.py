"""Clusters in the virtual machine: nodes with configuration files of their own, on devices instead of a file. The processor is
emulated: everything has ten times as long as elsewhere."""

import subprocess
import sys
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).parent.parent / "tests/cluster"))
import test_partition
from conftest import BIN, Cluster


def settings(ha, interconnect=""):
    """A node's times, and what else is in its sections: `ha` may go on with others."""
    return (
        f"[rac.interconnect]\nheartbeat_interval = 1000\nheartbeat_timeout = 8000\n{interconnect}\n"
        f"[ha]\ndisk_heartbeat_interval = 1000\ndisk_timeout = 15000\n{ha}\n"
    )


# On a disk with reservations.
RESERVATIONS = settings('fencing_method = "persistent_reservation"\nread_lease = 4000')


class OnDevices(Cluster):
    """One node for each of `disks`, which are ways to the same device."""

    def __init__(self, disks, settings):
        self.folder, self.nodes, self.disks, self.settings = Path("/tmp/cluster"), len(disks), disks, settings
        self.pg, self.http, self.interconnect = 5432, 8080, 7433
        self.processes = {}

    def address_between_nodes(self, node):
        return self.host(node)

    def start(self):
        self.format()
        self.configure()
        for node in self.numbers():
            self.start_node(node)
        self.wait_healthy(300)
        return self

    def format(self):
        initialise = [BIN / "rusty-db-server", "--init-rac", "--shared-storage", self.disks[0], "--max-nodes", str(self.nodes), "--volume-size", "512MiB"]
        subprocess.run(initialise, check=True)

    def configure(self):
        self.folder.mkdir()
        members = "".join(f'node{n} = "{self.address_between_nodes(n)}:{self.interconnect}"\n' for n in self.numbers())
        for node in self.numbers():
            (self.folder / f"node{node}.toml").write_text(
                f'[cluster]\ncluster_name = "rustydb"\nnode_id = "node{node}"\n[cluster.nodes]\n{members}'
                f'[rac.storage]\nshared_storage_path = "{self.disks[node - 1]}"\n'
                "[rac.cache_fusion]\nglobal_cache_size = 16777216\n"
                f'[server]\npg_address = "{self.host(node)}:{self.pg}"\nhttp_address = "{self.host(node)}:{self.http}"\n{self.settings}'
            )

    def start_node(self, node):
        log = open(self.folder / f"node{node}.log", "ab")
        command = [BIN / "rusty-db-server", "--config", self.folder / f"node{node}.toml"]
        self.processes[node] = subprocess.Popen(command, stdout=log, stderr=log)

    @property
    def process(self):
        return next((process for process in self.processes.values() if process.poll() is not None), self.processes[1])

    def log(self, node):
        return (self.folder / f"node{node}.log").read_text(errors="replace")

    def members(self, node):
        return self.health(node).get("members", [])

    def stop(self):
        for process in self.processes.values():
            process.terminate()
        ended = {node: process.wait(200) for node, process in self.processes.items()}
        assert not any(ended.values()), f"{ended}\n{self.logs()}"


def wait_until(cluster, what, within=200):
    test_partition.wait_until(cluster, what, within)
