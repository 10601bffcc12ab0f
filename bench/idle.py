#!/usr/bin/env python3
"""What an idle node costs: the processor's time of each node of a new `dev` cluster without clients, in per cent of one core.

    RUSTYDB_BIN=target/release python3 bench/idle.py [SECONDS] [options of `rusty-db-server dev`]

needs psycopg (tests/cluster/requirements.txt). The first ten seconds, in which nodes are still busy with their start, don't
count. Prints each node with its threads, dearest first; then the whole in JSON. The promise is less than 2 % for each node.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests/cluster"))
from conftest import Cluster

SECONDS = float(sys.argv[1]) if len(sys.argv) > 1 else 30
SETTLE = 10
TICKS = os.sysconf("SC_CLK_TCK")


def used(pid):
    """Seconds of processor time of each thread, by name and number."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        name, _, rest = (task / "stat").read_text().partition("(")[2].rpartition(")")
        found[f"{name}/{task.name}"] = sum(map(int, rest.split()[11:13])) / TICKS
    return found


def main():
    with tempfile.TemporaryDirectory(prefix="rustydb-idle-") as folder:
        cluster = Cluster(Path(folder) / "db", extra=sys.argv[2:])
        cluster.folder.mkdir()
        cluster.start()
        try:
            time.sleep(SETTLE)
            pids = cluster.pids()
            before, began = {node: used(pid) for node, pid in pids.items()}, time.monotonic()
            time.sleep(SECONDS)
            took = time.monotonic() - began
            summary = {}
            for node, pid in pids.items():
                threads = {name: (seconds - before[node].get(name, 0)) / took * 100 for name, seconds in used(pid).items()}
                summary[f"node{node}"] = round(sum(threads.values()), 2)
                dearest = sorted(threads.items(), key=lambda thread: -thread[1])[:5]
                print(f"node{node}: {sum(threads.values()):.2f} %  of that " + ", ".join(f"{name} {value:.2f}" for name, value in dearest))
        finally:
            cluster.stop()
    print(json.dumps({"seconds": SECONDS, "percent_of_a_core": summary}))


main()
