"""`rdma_latency.py BENCH ADDRESS ADDRESS ADDRESS`: what a block costs by RDMA beside what perftest says of the same two devices: a
message there (64 bytes, ib_send_lat) and a block back (8 KiB, ib_write_lat). All take turns; what counts is the ratio of
their medians over all turns. The addresses are this machine's, of RDMA devices; `rusty-db-bench` starts a node at each."""

import ipaddress
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

TURNS = int(os.environ.get("TURNS", 5))
ITERATIONS = 500
# perftest looks for what comes without ever sleeping.
POLL = ("--poll-us", os.environ.get("POLL_US", "100000"))
# What is to be compared with the bare verbs: a message there, and a block back into its frame with its message.
ASKED = "interconnect, 64 bytes there, 8256 back"
TARGET = 1.3
# The interconnect by itself, and blocks between caches, with their directory.
OURS = (
    ("raw", "--rounds", "10", "--no-sockperf", "--concurrency", "16", "--rate", "1000", "--seconds", "1"),
    ("transfer", "--rounds", "10", "--path", "two-way", "--contended", "0", "--concurrency", "0"),
)


def device_of(address):
    """The RDMA device of this address, and the number of the GID made from it."""
    wanted = ipaddress.ip_address(f"::ffff:{address}")
    for gid in sorted(Path("/sys/class/infiniband").glob("*/ports/1/gids/*"), key=lambda path: int(path.name)):
        kind = gid.parents[1] / "gid_attrs/types" / gid.name
        try:
            if ipaddress.ip_address(gid.read_text().strip()) == wanted and "v2" in kind.read_text():
                return gid.parents[3].name, gid.name
        except OSError:  # A place in the table that is not in use.
            continue
    sys.exit(f"no RoCE v2 device has the address {address}: see `rdma link` and `ip address`")


def perftest(tool, size, here, there, address):
    """Its median for one way, in microseconds."""

    def command(end):
        return ["timeout", "60", tool, "-F", "-d", end[0], "-x", end[1], "-s", str(size), "-n", str(ITERATIONS)]

    server = subprocess.Popen(command(there), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(1.5)
    out = subprocess.run([*command(here), address], capture_output=True, text=True)
    server.wait()
    line = re.search(rf"^ *{size} +{ITERATIONS} +(.*)$", out.stdout, re.M)
    assert out.returncode == 0 and line, out.stdout + out.stderr
    return float(line[1].split()[2])


def ours(bench, addresses):
    """The medians of what `rusty-db-bench` measures one at a time, by name, and what else it says."""
    medians, words = {}, []
    for command in OURS:
        command = [bench, *command, "--transport", "rdma", "--address", ",".join(addresses), *POLL, "--dir", "/tmp", "--json"]
        out = subprocess.run(command, capture_output=True, text=True)
        assert out.stdout, out.stderr
        report = json.loads(out.stdout)["reports"][0]
        alone = [series for series in report["series"] if not series.get("load") and "TCP" not in series["name"]]
        medians |= {series["name"]: series["latency_us"]["p50"] for series in alone}
        words += report["conditions"]
    return medians, words


def main(bench, addresses):
    here, there = device_of(addresses[0]), device_of(addresses[1])
    found = {}
    for turn in range(TURNS):
        message, block = (perftest(tool, size, here, there, addresses[1]) for tool, size in (("ib_send_lat", 64), ("ib_write_lat", 8192)))
        found.setdefault("bare: ib_send_lat of 64 bytes + ib_write_lat of 8 KiB", []).append(message + block)
        medians, words = ours(bench, addresses)
        for name, median in medians.items():
            found.setdefault(name, []).append(median)
        print(f"turn {turn + 1}: a message {message:.1f} us, a block {block:.1f} us; {'; '.join(words)}", flush=True)
    bare = statistics.median(next(iter(found.values())))
    for name, medians in found.items():
        median = statistics.median(medians)
        turns = " ".join(f"{value:.0f}" for value in medians)
        print(f"{median:8.1f} us {median / bare:6.2f} x  {name}   (turns: {turns})")
    asked = statistics.median(found[ASKED]) / bare
    print(f"target: a block asked for within {TARGET} x of the bare verbs: {asked:.2f}, {'met' if asked <= TARGET else 'MISSED'}")


main(sys.argv[1], sys.argv[2:])
