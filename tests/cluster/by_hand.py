"""Nodes with configuration files of their own, which the test starts itself, and starts again: no supervisor does."""

import subprocess
from pathlib import Path

from conftest import BIN, Cluster


class ByHand(Cluster):
    """`settings` are sections of each node's file, beside those that all need."""

    cache = 64 << 20

    def __init__(self, folder, nodes, settings=""):
        self.folder, self.nodes, self.settings = Path(folder), nodes, settings
        self.pg, self.http, self.interconnect = 5432, 8080, 7433
        self.processes = {}

    def volume(self, node):
        """The way of a node to the volume: a device, or a folder for a file."""
        return self.folder

    def address_between_nodes(self, node):
        return self.host(node)

    def command(self, node):
        return [BIN / "rusty-db-server", "--config", self.folder / f"node{node}.toml"]

    def format(self, *arguments):
        command = [BIN / "rusty-db-server", "--init-rac", "--shared-storage", self.volume(1), "--init-zero", "redo", *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def configure(self):
        members = "".join(f'node{n} = "{self.address_between_nodes(n)}:{self.interconnect}"\n' for n in self.numbers())
        for node in self.numbers():
            (self.folder / f"node{node}.toml").write_text(
                f'[cluster]\ncluster_name = "rustydb"\nnode_id = "node{node}"\n[cluster.nodes]\n{members}'
                f'[rac.storage]\nshared_storage_path = "{self.volume(node)}"\n'
                f"[rac.cache_fusion]\nglobal_cache_size = {self.cache}\n"
                f'[server]\npg_address = "{self.host(node)}:{self.pg}"\nhttp_address = "{self.host(node)}:{self.http}"\n{self.settings}'
            )

    def start_node(self, node):
        log = open(self.folder / f"node{node}.log", "ab")
        self.processes[node] = subprocess.Popen(self.command(node), stdout=log, stderr=log)

    @property
    def process(self):
        # What the base class looks at: a node that has ended.
        return next((process for process in self.processes.values() if process.poll() is not None), self.processes[1])
