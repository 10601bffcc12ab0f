"""A disk that does not answer one process any more, by the kernel's own throttling of control groups. Needs root."""

import os
from pathlib import Path

import pytest

V1 = Path("/sys/fs/cgroup/blkio")
V2 = Path("/sys/fs/cgroup")


def whole_disk(path):
    """The device, MAJOR:MINOR, that holds a file; of a partition its disk, because only that is throttled."""
    number = os.stat(path).st_dev
    device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    if not device.exists():
        pytest.skip(f"{path} is not on a block device of its own")
    device = device.resolve()
    return ((device.parent if (device / "partition").exists() else device) / "dev").read_text().strip()


class Stall:
    """Every request of a process to the disk of `path` waits, from `begin` to `end`; those under way go on then."""

    def __init__(self, pid, path):
        self.pid, self.disk = pid, whole_disk(path)
        if (V1 / "blkio.throttle.write_bps_device").exists() or (V1 / "tasks").exists():
            self.base, self.limits = V1, {"blkio.throttle.write_bps_device": ("1", "0"), "blkio.throttle.read_bps_device": ("1", "0")}
        elif "io" in ((V2 / "cgroup.controllers").read_text().split() if (V2 / "cgroup.controllers").exists() else []):
            self.base, self.limits = V2, {"io.max": ("wbps=1 rbps=1", "wbps=max rbps=max")}
        else:
            pytest.skip("the kernel throttles no disk here: neither control group blkio nor io is mounted")
        self.group = self.base / f"rustydb-test-{pid}"

    def _limit(self, which):
        for name, values in self.limits.items():
            (self.group / name).write_text(f"{self.disk} {values[which]}\n")

    def __enter__(self):
        try:
            if self.base == V2:
                (V2 / "cgroup.subtree_control").write_text("+io")
            self.group.mkdir()
            self._limit(1)
            (self.group / "cgroup.procs").write_text(str(self.pid))
        except OSError as error:
            self._remove()
            pytest.skip(f"no disk can be throttled here: {error}")
        return self

    def begin(self):
        self._limit(0)

    def end(self):
        self._limit(1)

    def _remove(self):
        if self.group.exists():
            for pid in (self.group / "cgroup.procs").read_text().split():
                (self.base / "cgroup.procs").write_text(pid)
            self.group.rmdir()

    def __exit__(self, *_):
        self.end()
        self._remove()
