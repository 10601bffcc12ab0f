#!/usr/bin/env python3
"""How long a node's death is felt: kill -9 of one of three nodes under load, again and again.

    RUSTYDB_BIN=target/release python3 bench/failover.py [KILLS]

needs psycopg (tests/cluster/requirements.txt). After each kill, on another node: a client that touches one row that the dead
node had nothing to do with, one that rewrites every row of a table that all nodes were changing, and the transfers that ran all
the time. Prints a line for each kill and medians and worst at the end; the parts are from the nodes' logs.
"""

import datetime
import json
import os
import re
import signal
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests/cluster"))
import psycopg
from conftest import Cluster
from transfers import Transfers

KILLS = int(sys.argv[1]) if len(sys.argv) > 1 else 20


def until(what, within=60):
    end = time.monotonic() + within
    while not what():
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.01)


def timed(connection, statement, since, results, name):
    connection.execute(statement)
    results[name] = (time.monotonic() - since) * 1000


def parts(cluster, killed_at):
    """Milliseconds after the kill at which the survivors' logs say that each step was done."""
    found = {}
    for node in cluster.numbers():
        for line in (cluster.folder / f"node{node}.log").read_text(errors="replace").splitlines():
            stamp = re.match(r"(\S+Z) ", line)
            if not stamp:
                continue
            at = datetime.datetime.fromisoformat(stamp[1].replace("Z", "+00:00")).timestamp() - killed_at
            if not 0 <= at < 10:
                continue
            for step, words in (
                ("detected", "connection lost"), ("fenced", " fenced "), ("views", "recovers the lost nodes"),
                ("recovered", "the lost nodes are recovered"),
            ):
                if words in line:
                    # The last of the survivors counts, for the detection the first.
                    known = found.get(step, at * 1000)
                    found[step] = min(known, at * 1000) if step == "detected" else max(known, at * 1000)
            blocks = re.search(r"blocks_ms=(\d+)", line)
            if blocks:
                found["blocks_ms"] = max(found.get("blocks_ms", 0), int(blocks[1]))
    return found


def main():
    with tempfile.TemporaryDirectory(prefix="rustydb-failover-") as folder:
        cluster = Cluster(Path(folder) / "db", volume="1GiB", cache="128MiB")
        cluster.folder.mkdir()
        cluster.start()
        rows = []
        try:
            load = Transfers(cluster, [1, 2, 3], each=2).start()
            cluster.psql(1, "create table other(id int primary key, v int); insert into other values (1, 0)")
            time.sleep(2)
            for kill in range(KILLS):
                lost = kill % 3 + 1
                one, two = (node for node in cluster.numbers() if node != lost)
                connections = [psycopg.connect(cluster.url(one), autocommit=True) for _ in range(2)]
                # Ready to go, and the row's block in this node's cache.
                for connection in connections:
                    connection.execute("update other set v = v + 1 where id = 1")
                    connection.execute("select count(*) from account")
                pid = cluster.pids()[lost]
                result, threads = {}, []
                wall, since = time.time(), time.monotonic()
                os.kill(pid, signal.SIGKILL)
                for connection, statement, name in (
                    (connections[0], "update other set v = v + 1 where id = 1", "own_row_ms"),
                    (connections[1], "update account set v = v", "all_rows_ms"),
                ):
                    threads.append(threading.Thread(target=timed, args=(connection, statement, since, result, name)))
                    threads[-1].start()
                for thread in threads:
                    thread.join(30)
                clients = load.of(one, two)
                until(lambda: all(client.done_at[-1] > since + 1 for client in clients))
                result["transfers_wait_ms"] = max(client.longest_wait(since, since + 1) for client in clients) * 1000
                until(lambda: all(len(cluster.health(node).get("members", [])) == 3 for node in cluster.numbers()))
                until(lambda: all(cluster.health(node).get("status") == "healthy" for node in cluster.numbers()))
                result["back_ms"] = (time.monotonic() - since) * 1000
                result |= {f"{step}": value for step, value in parts(cluster, wall).items()}
                rows.append(result)
                print(f"kill {kill + 1:2} of node{lost}: " + "  ".join(f"{name} {value:.0f}" for name, value in result.items()), flush=True)
                for connection in connections:
                    connection.close()
                time.sleep(1)
            load.stop()
            load.check(cluster.numbers())
        finally:
            cluster.stop()
    summary = {}
    for name in rows[0]:
        values = [row[name] for row in rows if name in row]
        summary[name] = {"p50": round(statistics.median(values), 1), "worst": round(max(values), 1)}
    print(json.dumps(summary, indent=1))


main()
