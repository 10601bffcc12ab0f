"""A volume that runs full: the statement fails with 53100, the nodes stay up, reads and deletes go on, and space that is
freed is used again."""

import time

import psycopg
import pytest

from conftest import running

ROW = "x" * 6000


@pytest.fixture(scope="module")
def small(folder):
    with running(folder / "small", volume="80MiB", cache="16MiB") as started:
        yield started


def fill(connection, first):
    """Inserts rows, each committed, until the volume is full; how many there are then."""
    for n in range(first, first + 100_000):
        try:
            connection.execute("insert into filling values (%s, %s)", (n, ROW))
        except psycopg.errors.DiskFull:
            return n - first
    raise AssertionError("600 MB went into a volume of 80 MiB")


def test_a_full_volume_fails_statements_and_nothing_else(small):
    pids = small.pids()
    small.psql(1, "create table filling (id int primary key, body text); create table other (id int primary key, v int)")
    small.psql(1, "insert into other select n, 0 from generate_series(1, 100) n")
    connections = {node: psycopg.connect(small.url(node), autocommit=True) for node in small.numbers()}
    first = fill(connections[1], 0)
    assert first > 100
    with pytest.raises(psycopg.errors.DiskFull):
        connections[2].execute("insert into filling select n, %s from generate_series(1000000, 1010000) n", (ROW,))
    for node, connection in connections.items():
        # Everything acknowledged is there, nothing of what was refused.
        assert connection.execute("select count(*), min(length(body)) from filling").fetchone() == (first, len(ROW)), node
        assert connection.execute("select count(*) from other where v = 0").fetchone()[0] == 100
    for node, connection in connections.items():
        deleted = connection.execute("delete from filling where id %% 4 = %s", (node,)).rowcount
        assert deleted > first // 5
    left = connections[2].execute("select count(*) from filling").fetchone()[0]
    connections[3].execute("update other set v = 1")
    # Deleted rows stay until no snapshot sees them; VACUUM gives their space to the next ones of the node that had it.
    again, until = 0, time.monotonic() + 60
    while again < 100:
        assert time.monotonic() < until, "the space of deleted rows is not used again"
        connections[2].execute("vacuum filling")
        again += fill(connections[1], 200_000 + again)
    for connection in connections.values():
        assert connection.execute("select count(*) from filling").fetchone()[0] == left + again
        assert connection.execute("select sum(v) from other").fetchone()[0] == 100
        connection.close()
    assert small.pids() == pids
    small.stop()
    small.start()
    assert small.value(3, "select count(*) from filling") == str(left + again)
