"""`rdma_latency.py BENCH ADDRESS ADDRESS ADDRESS`: what a block costs by RDMA beside what perftest says of the same two devices: a
message there (64 bytes, ib_send_lat) and a block back (8 KiB, ib_write_lat). All take turns; what counts is the ratio of
their medians over all turns. Then the same where everybody sleeps until the device says that something came, as nodes do unless told
otherwise: beside `ibv_rc_pingpong -e` (package ibverbs-utils), because perftest's events hang on soft-RoCE. The addresses are this machine's,
of RDMA devices; `rusty-db-bench` starts a node at each."""

import ipaddress
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

TURNS = int(os.environ.get("TURNS", 5))
ITERATIONS = 500
# perftest looks for what comes without ever sleeping.
POLL_US = os.environ.get("POLL_US", "100000")
# What is to be compared with the bare verbs: a message there, and a block back into its frame with its message.
ASKED = "interconnect, 64 bytes there, 8256 back"
TARGET = 1.3
# The interconnect by itself, and blocks between caches, with their directory.
RAW = ("raw", "--rounds", "10", "--no-sockperf", "--concurrency", "16", "--rate", "1000", "--seconds", "1")
TRANSFER = ("transfer", "--rounds", "10", "--path", "two-way", "--contended", "0", "--concurrency", "0")


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


def both_ends(command, here, there, address):
    """What `command(end)` prints at `here`, with the same program at `there` as its other end."""
    server = subprocess.Popen(command(there), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(1.5)
    out = subprocess.run([*command(here), address], capture_output=True, text=True)
    server.wait()
    assert out.returncode == 0, out.stdout + out.stderr
    return out.stdout


def perftest(tool, size, here, there, address):
    """Its median for one way, in microseconds."""

    def command(end):
        return ["timeout", "60", tool, "-F", "-d", end[0], "-x", end[1], "-s", str(size), "-n", str(ITERATIONS)]

    out = both_ends(command, here, there, address)
    return float(re.search(rf"^ *{size} +{ITERATIONS} +(.*)$", out, re.M)[1].split()[2])


def sleeping_pingpong(size, here, there, address):
    """The mean of ibv_rc_pingpong for one way, in microseconds, where both ends sleep until an event."""

    def command(end):
        return ["timeout", "60", "ibv_rc_pingpong", "-e", "-m", "4096", "-d", end[0], "-g", end[1], "-s", str(size), "-n", str(ITERATIONS)]

    return float(re.search(r"([0-9.]+) usec/iter", both_ends(command, here, there, address))[1]) / 2


def ours(bench, addresses, commands, poll_us):
    """The medians of what `rusty-db-bench` measures one at a time, by name, and what else it says."""
    medians, words = {}, []
    options = ["--transport", "rdma", "--address", ",".join(addresses), "--poll-us", poll_us, "--dir", "/tmp", "--json"]
    for command in commands:
        out = subprocess.run([bench, *command, *options], capture_output=True, text=True)
        assert out.stdout, out.stderr
        report = json.loads(out.stdout)["reports"][0]
        alone = [series for series in report["series"] if not series.get("load") and "TCP" not in series["name"]]
        medians |= {series["name"]: series["latency_us"]["p50"] for series in alone}
        words += report["conditions"]
    return medians, words


def table(found):
    """A line for each; the first is what the others are compared with."""
    bare = statistics.median(next(iter(found.values())))
    for name, medians in found.items():
        median = statistics.median(medians)
        turns = " ".join(f"{value:.0f}" for value in medians)
        print(f"{median:8.1f} us {median / bare:6.2f} x  {name}   (turns: {turns})")
    return statistics.median(found[ASKED]) / bare


def main(bench, addresses):
    here, there = device_of(addresses[0]), device_of(addresses[1])
    looking, sleeping = {}, {}
    for turn in range(TURNS):
        message, block = (perftest(tool, size, here, there, addresses[1]) for tool, size in (("ib_send_lat", 64), ("ib_write_lat", 8192)))
        looking.setdefault("bare: ib_send_lat of 64 bytes + ib_write_lat of 8 KiB", []).append(message + block)
        medians, words = ours(bench, addresses, (RAW, TRANSFER), POLL_US)
        for name, median in medians.items():
            looking.setdefault(name, []).append(median)
        print(f"turn {turn + 1}: a message {message:.1f} us, a block {block:.1f} us; {'; '.join(words)}", flush=True)
        if shutil.which("ibv_rc_pingpong"):
            bare = sum(sleeping_pingpong(size, here, there, addresses[1]) for size in (64, 8192))
            sleeping.setdefault("bare: ibv_rc_pingpong -e, 64 bytes one way + 8 KiB one way", []).append(bare)
            medians, _ = ours(bench, addresses, (RAW,), "0")
            sleeping.setdefault(ASKED, []).append(medians[ASKED])
    asked = table(looking)
    print(f"target: a block asked for within {TARGET} x of the bare verbs: {asked:.2f}, {'met' if asked <= TARGET else 'MISSED'}")
    if sleeping:
        print("where both sides sleep until an event:")
        table(sleeping)


main(sys.argv[1], sys.argv[2:])
