"""Whoever reads a table on one node holds it: DROP, TRUNCATE and ALTER on another wait, time out, or meet in a deadlock."""

import itertools
import threading
import time

import psycopg
import pytest

ALTERATIONS = {
    "drop": "drop table {}",
    "truncate": "truncate {}",
    "alter": "alter table {} add column more int default 7",
}

NUMBERS = itertools.count()


class Running:
    """A statement in a thread of its own."""

    def __init__(self, connection, statement):
        self.connection, self.statement, self.error, self.rows = connection, statement, None, None
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        try:
            cursor = self.connection.execute(self.statement)
            self.rows = cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            self.error = error

    def waits(self):
        self.thread.join(0.5)
        return self.thread.is_alive()

    def end(self):
        self.thread.join(30)
        assert not self.thread.is_alive(), self.statement
        return self


def connect(cluster, node, autocommit=True):
    return psycopg.connect(cluster.url(node), autocommit=autocommit)


@pytest.fixture(params=ALTERATIONS)
def alteration(request):
    return ALTERATIONS[request.param]


@pytest.fixture
def table(cluster):
    """A table of 3000 rows that all nodes have read, and a view of it."""
    name = f"held_{next(NUMBERS)}"
    cluster.psql(1, f"create table {name} (id int primary key, v int); insert into {name} select g, g from generate_series(1, 3000) g")
    for node in cluster.numbers():
        assert cluster.value(node, f"select count(*) from {name}") == "3000"
        assert cluster.value(node, f"select v from {name} where id = 5") == "5"
    return name


READS = {
    "select": "select count(*) from {}",
    "point": "select v from {} where id = 7",
    "update": "update others set v = v + 1 where id in (select id from {} where id = 1)",
    "insert": "insert into others select id + 100000, v from {} where id < 0",
    "cursor": "declare c cursor for select * from {}",
    "explain": "explain select * from {}",
}


@pytest.fixture(scope="module", autouse=True)
def others(cluster):
    cluster.psql(1, "create table others (id int primary key, v int); insert into others values (1, 1)")


@pytest.mark.parametrize("read", READS)
def test_an_alteration_waits_for_a_transaction_that_has_read(cluster, table, alteration, read):
    with connect(cluster, 2, autocommit=False) as reader, connect(cluster, 1) as writer:
        reader.execute(READS[read].format(table))
        running = Running(writer, alteration.format(table))
        assert running.waits()
        # It still finds what it has been looking at, and others queue behind the alteration.
        assert reader.execute(f"select count(*) from {table}").fetchone() == (3000,)
        late = connect(cluster, 3)
        behind = Running(late, f"select count(*) from {table}")
        assert behind.waits()
        reader.commit()
        assert running.end().error is None
        behind.end()
        if alteration.startswith("drop"):
            assert isinstance(behind.error, psycopg.errors.UndefinedTable)
        else:
            assert behind.rows == [(0,) if alteration.startswith("truncate") else (3000,)]
        late.close()


def test_an_alteration_waits_for_a_statement_that_sends_its_rows(cluster, table, alteration):
    """Outside a transaction block the lock ends with the statement: here with the last row of COPY."""
    with connect(cluster, 2) as reader, connect(cluster, 1) as writer:
        # Far more than what sockets hold.
        wide = f"copy (select repeat('x', 10000) from {table}) to stdout"
        with reader.cursor().copy(wide) as copy:
            copy.read()
            running = Running(writer, alteration.format(table))
            assert running.waits()
            size = sum(len(part) for part in copy)
        assert size > 2999 * 10000
        assert running.end().error is None


@pytest.mark.parametrize("through", ["view", "foreign key"])
def test_tables_behind_views_and_foreign_keys_are_held(cluster, table, through):
    cluster.psql(1, f"create view {table}_v as select * from {table}; create table {table}_child (id int primary key, parent int references {table})")
    with connect(cluster, 2, autocommit=False) as reader, connect(cluster, 1) as writer:
        reader.execute(f"select * from {table}_v limit 1" if through == "view" else f"insert into {table}_child values (1, 1)")
        running = Running(writer, f"alter table {table} rename column v to w")
        assert running.waits()
        reader.commit()
        assert running.end().error is None


def test_who_does_not_want_to_wait_is_told(cluster, table):
    with connect(cluster, 2, autocommit=False) as reader, connect(cluster, 1) as writer:
        reader.execute(f"select * from {table} where id = 1")
        writer.execute("set lock_timeout = '300ms'")
        for alteration in ALTERATIONS.values():
            with pytest.raises(psycopg.errors.LockNotAvailable, match="canceling statement due to lock timeout"):
                writer.execute(alteration.format(table))
        writer.execute("set lock_timeout = 0")
        with pytest.raises(psycopg.errors.LockNotAvailable, match=f'could not obtain lock on relation "{table}"'):
            with writer.transaction():
                writer.execute(f"lock table {table} in access exclusive mode nowait")
        # Those who have given up are in nobody's way.
        with connect(cluster, 3) as third:
            third.execute("set lock_timeout = '10s'")
            assert third.execute(f"select count(*) from {table}").fetchone() == (3000,)
        # The other way round.
        reader.commit()
        with writer.transaction():
            writer.execute(f"alter table {table} add column x int")
            for statement in (f"select * from {table} where id = 1", f"select count(*) from {table}"):
                reader.execute("set lock_timeout = '300ms'")
                with pytest.raises(psycopg.errors.LockNotAvailable):
                    reader.execute(statement)
                reader.rollback()
        assert reader.execute(f"select * from {table} where id = 1").fetchone() == (1, 1, None)


def test_exclusive_lets_readers_in_and_nobody_else(cluster, table):
    with connect(cluster, 1) as holder, connect(cluster, 2) as other, holder.transaction():
        holder.execute(f"lock table {table} in share mode")
        holder.execute(f"update {table} set v = v where id = 1")
        other.execute("set lock_timeout = '300ms'")
        holder.execute(f"lock table {table} in exclusive mode")
        assert other.execute(f"select count(*) from {table}").fetchone() == (3000,)
        assert other.execute(f"select v from {table} where id = 3").fetchone() == (3,)
        for statement in (f"select * from {table} where id = 3 for update", f"update {table} set v = 0 where id = 3"):
            with pytest.raises(psycopg.errors.LockNotAvailable):
                other.execute(statement)


def test_readers_and_an_alteration_in_a_circle(cluster, table):
    cluster.psql(1, f"create table {table}_b (id int primary key)")
    with connect(cluster, 2, autocommit=False) as reader, connect(cluster, 1, autocommit=False) as writer:
        reader.execute(f"select count(*) from {table}")
        writer.execute(f"alter table {table}_b add column x int")
        running = Running(writer, f"alter table {table} add column x int")
        assert running.waits()
        circle = Running(reader, f"select count(*) from {table}_b")
        # One of them dies; the other goes on, at the latest when the first has rolled back.
        deadline = time.monotonic() + 30
        while not (running.error or circle.error) and time.monotonic() < deadline:
            time.sleep(0.05)
        failed, other = (running, circle) if running.error else (circle, running)
        assert isinstance(failed.error, psycopg.errors.DeadlockDetected), failed.error
        failed.end().connection.rollback()
        assert other.end().error is None
        other.connection.commit()
