"""What both of two virtual machines need: a cluster of which each runs one node, on a disk that both reach. Machine K runs node K at
10.99.0.K. Machine 1 formats the volume. One of the two makes things happen and looks whether all is well; the other serves until that one tells the
end."""

import time

from vm_cluster import OnDevices

from conftest import wait_until


class OnMachines(OnDevices):
    def __init__(self, machine, disk, settings):
        super().__init__([disk, disk], settings)
        self.machine = machine

    def host(self, node):
        return f"10.99.0.{node}"

    def url(self, node):
        # A machine without power does not say that its connections have ended.
        return super().url(node) + " keepalives_idle=5 keepalives_interval=5 keepalives_count=3 tcp_user_timeout=20000"

    def start(self, format=True):
        """Both nodes, each from its machine. `format`: the volume is new."""
        if format and self.machine == 1:
            self.format()
        elif format:
            wait_until(self, lambda: self.health(1), 300)
        self.configure()
        self.start_node(self.machine)
        self.wait_together()
        return self

    def wait_together(self):
        wait_until(self, lambda: all(self.members(node) == ["node1", "node2"] for node in self.numbers()), 400)

    def serve_until_the_end(self):
        """Until the other machine tells the end."""
        own = self.machine
        while self.psql(own, "select 1 from the_end", "-At", check=False, timeout=200).stdout.strip() != "1":
            assert self.processes[own].poll() is None, self.log(own)
            time.sleep(2)
        # Whoever told goes first.
        time.sleep(5)
        self.stop()

    def tell_the_end(self):
        self.psql(self.machine, "create table the_end as select 1 as n", timeout=200)
        self.stop()
