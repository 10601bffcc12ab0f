"""In two virtual machines with one NVMe disk between them (`power-cut` switches them on and off): machine 1 has the clients."""

import re
import sys
import time
from pathlib import Path

from two_machines import OnMachines
from vm_cluster import settings

from conftest import wait_until
from transfers import Transfers

SETTINGS = settings("""
fencing_method = "lease"
[ha.fencing]
lease = 12000
lease_margin = 6000
watchdog = "off"
""")


def say(words):
    print(words, flush=True)


def under_load(cluster):
    say("two nodes on two machines serve, on one NVMe disk")
    load = Transfers(cluster, [1, 2], each=1).start()
    wait_until(cluster, lambda: all(len(client.done_at) > 3 for client in load.clients))
    say("cut machine 2")
    wait_until(cluster, lambda: cluster.members(1) == ["node1"])
    cut = time.monotonic()
    wait_until(cluster, lambda: load.of(1)[0].done_at[-1] > cut + 5)
    # One of two may not go on before it has fenced the other, and says so.
    errors = load.of(1)[0].errors
    assert all(code == "57P03" for _, code, _ in errors), errors[:3]
    say("the first has recovered its redo and goes on")
    say("switch machine 2 on")
    cluster.wait_together()
    back = time.monotonic()
    wait_until(cluster, lambda: all(client.done_at[-1] > back for client in load.clients))
    load.stop()
    load.check([1, 2])
    acknowledged = sum(len(client.acknowledged) for client in load.clients)
    say(f"the second has joined again; {acknowledged} acknowledged transfers are all there, on both")

    load = Transfers(cluster, [1, 2], each=1).start()
    wait_until(cluster, lambda: all(len(client.done_at) > 3 for client in load.clients))
    say("cut both")
    known = {}
    while True:
        for client in load.clients:
            told = client.acknowledged[known.get(client, 0) :]
            known[client] = known.get(client, 0) + len(told)
            for number in told:
                say(f"told {client.number} {number}")
        time.sleep(0.05)


def after_the_cut(cluster, said):
    """Everything that was told before both lost their power is there."""
    last_words = Path(said).read_text(errors="replace").rpartition("cut both")[2].rpartition("\n")[0]
    told = {tuple(map(int, line)) for line in re.findall(r"^told (\d+) (\d+)$", last_words, re.M)}
    assert told
    for node in cluster.numbers():
        there = cluster.value(node, "select client, n from told")
        lost = told - {tuple(map(int, line.split("|"))) for line in there.splitlines()}
        assert not lost, f"node{node} has lost {sorted(lost)[:5]}"
        assert cluster.value(node, "select sum(v) from account") == "200000", f"node{node}"
    say(f"both were cut off under load and are back; {len(told)} acknowledged transfers are all there")


def main(disk, machine, part, said):
    cluster = OnMachines(int(machine), disk, SETTINGS).start(format=part == "first")
    if machine == "2":
        cluster.serve_until_the_end()
    elif part == "first":
        under_load(cluster)
    else:
        after_the_cut(cluster, said)
        cluster.tell_the_end()


main(*sys.argv[1:])
