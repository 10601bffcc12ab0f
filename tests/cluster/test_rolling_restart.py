"""Planned work: clients are sent away from a node, it stops and starts again; one after the other, and nobody loses anything."""

import os
import signal
import subprocess
import time

import psycopg
import pytest
from conftest import BIN, wait_until
from transfers import Transfers


def status(cluster, node):
    return cluster.health(node).get("status")


def serves(cluster, node):
    health = cluster.health(node)
    return health.get("status") == "healthy" and len(health["members"]) == 3


def connect(cluster, node):
    return psycopg.connect(cluster.url(node), autocommit=True)


def told(connection, statement="select 1"):
    """What the node says to a client that it has sent away."""
    with pytest.raises(psycopg.OperationalError) as error:
        connection.execute(statement)
    return error.value


def test_a_drained_node_sends_clients_away_and_takes_them_again(cluster):
    cluster.psql(1, "create table drained(id int primary key)")
    idle, busy = connect(cluster, 2), connect(cluster, 2)
    busy.execute("begin")
    busy.execute("insert into drained values (1)")
    drain = subprocess.Popen(
        [BIN / "rusty-db-cli", "node", "drain", "node2", "--timeout", "60", "--http", f"{cluster.host(2)}:{cluster.http}"],
        stdout=subprocess.PIPE, text=True,
    )
    wait_until(cluster, lambda: cluster.health(2).get("detail") == "1 session left")
    assert status(cluster, 2) == "draining"
    error = told(idle)
    assert error.sqlstate == "57P01" and "the node is being drained; connect to another node" in str(error), error
    with pytest.raises(psycopg.OperationalError, match="the node is being drained: no connections are accepted"):
        connect(cluster, 2)
    # Its transaction may end, and it has to go then.
    busy.execute("insert into drained values (2)")
    busy.execute("commit")
    assert told(busy).sqlstate == "57P01"
    out, _ = drain.communicate(timeout=30)
    assert drain.returncode == 0 and "drained" in out, out
    assert status(cluster, 2) == "drained"
    assert "drained" in cluster.cli("cluster", "status", check=False)
    cluster.cli("node", "undrain", "node2")
    wait_until(cluster, lambda: status(cluster, 2) == "healthy")
    assert cluster.value(2, "select count(*) from drained") == "2"


def test_a_transaction_that_does_not_end_in_time_is_ended(cluster):
    cluster.psql(1, "create table unfinished(id int primary key); insert into unfinished values (0)")
    holder, idle, waiting = connect(cluster, 1), connect(cluster, 3), connect(cluster, 3)
    holder.execute("begin")
    holder.execute("update unfinished set id = id where id = 0")
    for connection in (idle, waiting):
        connection.execute("begin")
    idle.execute("insert into unfinished values (1)")
    waits = subprocess.Popen(
        ["psql", "-X", "-At", "-v", "VERBOSITY=verbose", cluster.url(3), "-c", "update unfinished set id = 5 where id = 0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )
    wait_until(cluster, lambda: cluster.health(3)["pid"] and waits.poll() is None)
    time.sleep(0.5)
    cluster.cli("node", "drain", "node3", "--timeout", "1")
    assert told(idle).sqlstate == "57P01"
    _, words = waits.communicate(timeout=20)
    assert "57P01" in words and "the node is being drained" in words, words
    holder.execute("rollback")
    assert cluster.value(1, "select string_agg(id::text, ',') from unfinished") == "0"
    cluster.cli("node", "undrain", "node3")
    wait_until(cluster, lambda: status(cluster, 3) == "healthy")


def test_all_nodes_one_after_the_other_under_load(cluster):
    load = Transfers(cluster, [1, 2, 3], roams=True).start()
    started = []
    try:
        time.sleep(1)
        for node in cluster.numbers():
            others = [other for other in cluster.numbers() if other != node]
            cluster.psql(others[0], "drop table if exists bystander; create table bystander(id int primary key, v int); insert into bystander select g, 0 from generate_series(1, 100) g")
            script = cluster.folder / "bystander.sql"
            script.write_text("\\set id random(1, 100)\nupdate bystander set v = v + 1 where id = :id;\n")
            bystander = cluster.pgbench(others[0], "-n", "-c", "2", "-T", "8", "-f", str(script), wait=False)
            pid = cluster.pids()[node]
            cluster.cli("node", "drain", f"node{node}", "--timeout", "10")
            since = time.monotonic()
            cluster.cli("node", "stop", f"node{node}")
            while os.path.exists(f"/proc/{pid}"):
                assert time.monotonic() < since + 20, cluster.logs()
                time.sleep(0.01)
            stopped = time.monotonic()
            wait_until(cluster, lambda: all(len(cluster.health(other).get("members", [])) == 2 for other in others))
            wait_until(cluster, lambda: all(client.done_at[-1] > stopped for client in load.clients))
            print(f"node{node} stopped in {stopped - since:.2f} s, longest wait {max(client.longest_wait(since, time.monotonic()) for client in load.clients):.2f} s")
            log = open(cluster.folder / f"node{node}.log", "ab")
            command = [BIN / "rusty-db-server", "--config", cluster.folder / f"node{node}.toml"]
            started.append(subprocess.Popen(command, stdout=log, stderr=log))
            wait_until(cluster, lambda: all(serves(cluster, one) for one in cluster.numbers()))
            out, _ = bystander.communicate(timeout=60)
            assert bystander.returncode == 0, f"{out}\n{cluster.logs()}"
        load.stop()
        for client in load.clients:
            assert not client.errors, f"{client.errors[:3]}\n{cluster.logs()}"
        assert all(any(node == away for client in load.clients for _, away, _ in client.sent_away) for node in cluster.numbers())
        load.check(cluster.numbers())
    finally:
        for process in started:
            process.send_signal(signal.SIGTERM)
        for process in started:
            assert process.wait(30) == 0, cluster.logs()
