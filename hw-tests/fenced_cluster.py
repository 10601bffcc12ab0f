"""`fenced_cluster.py PATH PATH PATH`: three nodes on three paths to one disk with reservations. One stands still until the others have fenced it by
reservations and gone on; then it wakes with a cache full of what was true and writes under way."""

import os
import re
import signal
import sys
import time

from vm_cluster import RESERVATIONS, OnDevices

import psycopg
from conftest import wait_until
from transfers import Transfers

LOST = 3


def main(disks):
    cluster = OnDevices(disks, RESERVATIONS).start()
    for node in cluster.numbers():
        assert "protected by persistent_reservation first" in cluster.log(node), cluster.log(node)
    print("three nodes serve, protected by reservations")
    load = Transfers(cluster, [1, 2, 3], each=1).start()
    wait_until(cluster, lambda: all(len(client.done_at) > 3 for client in load.clients))

    # What it has cached it would show, if nobody kept it from that.
    cluster.psql(1, "create table seen(id int primary key, v int); insert into seen values (1, 0)", timeout=200)
    assert cluster.psql(LOST, "select v from seen", "-At", timeout=200).strip() == "0"
    asks = psycopg.connect(cluster.url(LOST), autocommit=True)
    asks.execute("select v from seen where id = 1")
    os.kill(cluster.processes[LOST].pid, signal.SIGSTOP)
    stopped = time.monotonic()
    wait_until(cluster, lambda: cluster.members(1) == ["node1", "node2"])
    fenced = cluster.log(1) + cluster.log(2)
    assert re.search(r"node3.* is fenced by persistent_reservation", fenced), cluster.logs()
    print(f"fenced and gone on {time.monotonic() - stopped:.0f} s after it was stopped")
    cluster.psql(1, "update seen set v = 1", timeout=200)
    wait_until(cluster, lambda: all(client.done_at[-1] > stopped + 10 for client in load.of(1, 2)))
    for client in load.of(1, 2):
        assert not client.errors, f"{client.errors[:3]}\n{cluster.logs()}"

    # Its clients ask while it still sleeps, and are answered, if at all, when it wakes.
    asks.pgconn.send_query(b"select v from seen where id = 1")
    os.kill(cluster.processes[LOST].pid, signal.SIGCONT)
    answer = []
    while (result := asks.pgconn.get_result()) is not None:
        answer.append(result.get_value(0, 0) if result.ntuples else result.error_field(psycopg.pq.DiagnosticField.SQLSTATE))
    print(f"asked in its sleep it says {answer}")
    assert b"0" not in answer, "it showed what was true before the others went on"
    assert cluster.processes[LOST].wait(200) == 75, cluster.logs()
    print("it woke up and ended by itself")

    cluster.start_node(LOST)
    wait_until(cluster, lambda: all(len(cluster.members(node)) == 3 for node in cluster.numbers()), 400)
    assert cluster.psql(LOST, "select v from seen", "-At", timeout=200).strip() == "1"
    load.stop()
    load.check(cluster.numbers())
    print(f"joined again; {sum(len(client.acknowledged) for client in load.clients)} acknowledged transfers are all there")
    cluster.stop()


main(sys.argv[1:])
