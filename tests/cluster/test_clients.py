"""Programs as people use them: psql's commands, psycopg, locks and visibility between nodes, bad input."""

import socket
import subprocess
import threading
import time

import psycopg
import pytest

from conftest import BIN, refusal


def test_a_commit_on_one_node_is_seen_on_all_at_once(cluster):
    cluster.psql(1, "create table seen (n int primary key)")
    connections = [psycopg.connect(cluster.url(node), autocommit=True) for node in cluster.numbers()]
    for n in range(60):
        connections[n % 3].execute("insert into seen values (%s)", (n,))
        for connection in connections:
            assert connection.execute("select count(*) from seen").fetchone()[0] == n + 1
    for connection in connections:
        connection.close()


def test_rows_are_locked_across_nodes(cluster):
    cluster.psql(1, "create table locked (id int primary key, v int); insert into locked values (1, 0), (2, 0)")
    with psycopg.connect(cluster.url(1)) as one, psycopg.connect(cluster.url(2)) as two:
        one.execute("update locked set v = v + 1 where id = 1")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            two.execute("select * from locked where id = 1 for update nowait")
        two.rollback()
        done = []

        def wait():
            two.execute("update locked set v = v + 10 where id = 1")
            two.commit()
            done.append(True)

        waiter = threading.Thread(target=wait)
        waiter.start()
        time.sleep(0.3)
        assert not done
        one.commit()
        waiter.join(30)
        assert done
    assert cluster.value(3, "select v from locked where id = 1") == "11"


def test_a_deadlock_between_nodes_costs_one_transaction(cluster):
    cluster.psql(1, "create table dead (id int primary key, v int); insert into dead values (1, 0), (2, 0)")
    outcomes = []

    def cross(node, first, second, barrier):
        with psycopg.connect(cluster.url(node)) as connection:
            try:
                connection.execute("update dead set v = v + 1 where id = %s", (first,))
                barrier.wait(20)
                connection.execute("update dead set v = v + 1 where id = %s", (second,))
                connection.commit()
                outcomes.append("committed")
            except psycopg.errors.DeadlockDetected:
                outcomes.append("40P01")

    barrier = threading.Barrier(2)
    threads = [threading.Thread(target=cross, args=(1, 1, 2, barrier)), threading.Thread(target=cross, args=(2, 2, 1, barrier))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(outcomes) == ["40P01", "committed"]
    assert cluster.value(3, "select sum(v) from dead") == "2"


def test_repeatable_read_keeps_its_snapshot_and_refuses_to_overwrite(cluster):
    cluster.psql(1, "create table snap (id int primary key, v int); insert into snap values (1, 0)")
    with psycopg.connect(cluster.url(1)) as one, psycopg.connect(cluster.url(3), autocommit=True) as other:
        one.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        assert one.execute("select v from snap").fetchone()[0] == 0
        other.execute("update snap set v = 5")
        assert one.execute("select v from snap").fetchone()[0] == 0
        with pytest.raises(psycopg.errors.SerializationFailure):
            one.execute("update snap set v = v + 1")
        one.rollback()


def test_psycopg_types_copy_and_rollback(cluster):
    with psycopg.connect(cluster.url(2)) as connection:
        connection.execute("create table kinds (id serial primary key, t text, n numeric, b bytea, ok bool)")
        row = connection.execute(
            "insert into kinds (t, n, b, ok) values (%s, %s, %s, %s) returning id, t, n, b, ok", ("é", "1.50", b"\x00\xff", True)
        ).fetchone()
        assert row[1] == "é" and str(row[2]) == "1.50" and row[3] == b"\x00\xff" and row[4] is True
        with connection.cursor().copy("copy kinds (t) from stdin") as copy:
            for n in range(1000):
                copy.write_row((f"row {n}",))
        connection.commit()
        connection.execute("delete from kinds")
        connection.rollback()
        assert connection.execute("select count(*) from kinds").fetchone()[0] == 1001


def test_large_rows(cluster):
    with psycopg.connect(cluster.url(1), autocommit=True) as connection:
        connection.execute("create table large (id int primary key, body text)")
        for id, size in ((1, 9_000), (2, 1_000_000), (3, 20_000_000)):
            connection.execute("insert into large values (%s, %s)", (id, "x" * size))
    with psycopg.connect(cluster.url(3), autocommit=True) as connection:
        assert connection.execute("select id, length(body) from large order by id").fetchall() == [(1, 9_000), (2, 1_000_000), (3, 20_000_000)]


def test_garbage_costs_its_connection_and_nothing_else(cluster):
    for port in (cluster.pg, cluster.interconnect):
        for garbage in (b"\x00" * 64, b"\xff" * 4096, b"GET / HTTP/1.1\r\n\r\n", b"\x00\x00\x00\x08\x00\x00\x00\x00"):
            with socket.create_connection(("127.0.0.1", port), timeout=5) as stream:
                stream.settimeout(10)
                try:
                    stream.sendall(garbage)
                    while stream.recv(4096):
                        pass
                except OSError:
                    pass
    assert cluster.value(1, "select 1") == "1"
    assert all(cluster.health(node)["status"] == "healthy" for node in cluster.numbers())


def test_what_is_wrong_is_named(folder):
    base = folder / "wrong"
    base.mkdir()
    volume = base / "v"
    assert "at least" in refusal("--init-rac", "--shared-storage", volume, "--volume-size", "1MiB")
    subprocess.run([BIN / "rusty-db-server", "--init-rac", "--shared-storage", volume, "--volume-size", "128MiB"], check=True, capture_output=True)
    assert "RustyDB volume" in refusal("--init-rac", "--shared-storage", volume, "--volume-size", "128MiB")
    config = base / "node1.toml"

    def with_config(cluster="rustydb", storage=volume, extra=""):
        config.write_text(
            f'[cluster]\ncluster_name = "{cluster}"\nnode_id = 1\n[rac.interconnect]\naddress = "127.0.0.1:19433"\n'
            f'[rac.storage]\nshared_storage_path = "{storage}"\n[server]\npg_address = "127.0.0.1:19432"\nhttp_address = "127.0.0.1:19480"\n{extra}'
        )
        return refusal("--config", config)

    assert "unknown field `shard`" in with_config(extra="[engine]\nshard = 1\n")
    assert "engine.shards = 99 is out of range" in with_config(extra="[engine]\nshards = 99\n")
    message = with_config(cluster="other")
    assert "other" in message and "rustydb" in message, message
    assert "format it first" in with_config(storage=base / "nothing")
    (base / "garbage").write_bytes(b"not a volume" * 100_000)
    assert "not a RustyDB volume" in with_config(storage=base / "garbage")
    data = volume.read_bytes()
    (base / "short").write_bytes(data[: 64 << 20])
    assert with_config(storage=base / "short") != ""
