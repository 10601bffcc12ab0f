"""In two virtual machines: the node of the second stands still until the first has fenced its machine by a reservation. From then on no
write of that machine succeeds, whoever asks for it; the first has recovered its redo."""

import errno
import mmap
import os
import signal
import sys
import time

from two_machines import OnMachines
from vm_cluster import RESERVATIONS

from conftest import wait_until
from transfers import Transfers

PAGE = 4096


def write_what_is_there(disk):
    """Writes a page of the disk as it is, past all caches: None, or why it was refused."""
    page = mmap.mmap(-1, PAGE)
    device = os.open(disk, os.O_RDWR | os.O_DIRECT)
    try:
        # The last page: no volume uses it while it grows.
        at = os.lseek(device, 0, os.SEEK_END) - PAGE
        assert os.preadv(device, [page], at) == PAGE
        os.pwritev(device, [page], at)
    except OSError as error:
        return errno.errorcode[error.errno]
    finally:
        os.close(device)


def main(machine, disk):
    cluster = OnMachines(machine, disk, RESERVATIONS).start()
    if machine == 1:
        return cluster.serve_until_the_end()
    print("two nodes on two machines serve", flush=True)
    load = Transfers(cluster, [1, 2], each=1).start()
    wait_until(cluster, lambda: all(len(client.done_at) > 3 for client in load.clients))
    assert write_what_is_there(disk) is None, "before, its writes succeed"

    os.kill(cluster.processes[2].pid, signal.SIGSTOP)
    stopped = time.monotonic()
    wait_until(cluster, lambda: cluster.members(1) == ["node1"])
    wait_until(cluster, lambda: all(client.done_at[-1] > stopped + 10 for client in load.of(1)))
    # One of two may not go on before it has fenced the other, and says so.
    errors = load.of(1)[0].errors
    assert all(code == "57P03" for _, code, _ in errors), errors[:3]
    print(f"fenced, recovered and gone on {time.monotonic() - stopped:.0f} s after it stood still", flush=True)
    refused = write_what_is_there(disk)
    assert refused == "EBADE", f"a write of the fenced machine: {refused}"
    print("the fenced machine's write fails: EBADE, a reservation conflict")

    os.kill(cluster.processes[2].pid, signal.SIGCONT)
    assert cluster.processes[2].wait(200) == 75, cluster.log(2)
    cluster.start_node(2)
    cluster.wait_together()
    load.stop()
    load.check(cluster.numbers())
    print(f"joined again; {sum(len(client.acknowledged) for client in load.clients)} acknowledged transfers are all there", flush=True)
    cluster.tell_the_end()


main(int(sys.argv[1]), sys.argv[2])
