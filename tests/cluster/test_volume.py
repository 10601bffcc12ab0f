"""A volume that is a file: what of it has been written when its formatting has ended, by the file system's own map."""

import errno
import fcntl
import struct
import subprocess

import pytest
from conftest import BIN, Cluster, refusal

# linux/fiemap.h
FS_IOC_FIEMAP = 0xC020660B
FIEMAP_FLAG_SYNC = 1
FIEMAP_EXTENT_UNWRITTEN = 0x800
HEADER = struct.Struct("=QQLLLL")
EXTENT = struct.Struct("=QQQ16xL12x")
EXTENTS_MAX = 4096
# The redo areas of a volume of this size for 8 nodes of one shard are as small as they get.
SIZE, REDO = 128 << 20, 8 * (8 << 20)


def extents(path):
    """Where each extent of a file begins, how long it is, and whether it is only reserved."""
    answer = bytearray(HEADER.pack(0, 2**64 - 1, FIEMAP_FLAG_SYNC, 0, EXTENTS_MAX, 0) + bytes(EXTENT.size * EXTENTS_MAX))
    with open(path, "rb") as file:
        try:
            fcntl.ioctl(file, FS_IOC_FIEMAP, answer)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY):
                pytest.skip(f"the file system of {path} shows no extents")
            raise
    count = HEADER.unpack_from(answer)[3]
    assert count < EXTENTS_MAX
    found = (EXTENT.unpack_from(answer, HEADER.size + n * EXTENT.size) for n in range(count))
    return [(start, length, bool(flags & FIEMAP_EXTENT_UNWRITTEN)) for start, _, length, flags in found]


def reserved(path):
    return [(start, length) for start, length, unwritten in extents(path) if unwritten]


def init(volume, *arguments):
    command = [BIN / "rusty-db-server", "--init-rac", "--shared-storage", volume, "--volume-size", "128MiB", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_a_volume_file_is_written_once_when_it_is_made(folder):
    written, at_once = folder / "written", folder / "at-once"
    assert "written with zeros: what stands before the data" in init(at_once, "--init-zero", "redo")
    only_reserved = reserved(at_once)
    if not only_reserved:
        pytest.skip("the file system writes what it reserves, or reserves nothing")
    assert all(start >= REDO for start, _ in only_reserved), "the redo areas are written in any case"
    assert "written with zeros: all of it" in init(written)
    assert not reserved(written)
    assert sum(length for _, length, _ in extents(written)) >= SIZE, "no holes either"


def test_a_cluster_on_a_written_volume(folder):
    cluster = Cluster(folder / "on-written", nodes=1, volume="128MiB", extra=("--init-zero", "all"))
    cluster.folder.mkdir()
    volume = cluster.folder / "rustydb.volume"
    # As an interrupted formatting leaves it: it has not come to the superblock.
    volume.write_bytes(bytes(1 << 20))
    cluster.start()
    assert not reserved(volume)
    cluster.psql(1, "create table kept as select n from generate_series(1, 1000) n")
    cluster.stop()
    assert cluster.start().value(1, "select sum(n) from kept") == "500500"
    cluster.stop()


def test_what_is_wrong_is_named(folder):
    volume = folder / "never"
    assert "all, redo" in refusal("--init-rac", "--shared-storage", volume, "--init-zero", "none")
    assert "all, redo" in refusal("dev", "--data-dir", volume, "--init-zero", "some")
    assert "--init-rac" in refusal("--init-zero", "all")
    assert not volume.exists()
