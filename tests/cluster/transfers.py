"""Clients that move money between accounts, each remembering what it was told is committed."""

import threading
import time

import psycopg

ACCOUNTS = 200
# What a client may be told that runs against other clients, not against a lost node.
RETRY = ("40001", "40P01")
# What a client is told that is to go to another node: it is sent away, or not let in.
ELSEWHERE = ("57P01", "57P03")
# While a connection is made libpq gives no code.
NOT_LET_IN = ("no connections are accepted", "Connection refused")


class Client(threading.Thread):
    """Transfers on one node until told to stop; connects again when its connection is lost: to another node if it roams."""

    def __init__(self, cluster, node, number, roams=False):
        super().__init__(daemon=True)
        self.cluster, self.node, self.number, self.roams = cluster, node, number, roams
        self.acknowledged, self.errors, self.done_at = [], [], []
        self.sent_away = []
        self.halt = threading.Event()

    def run(self):
        n = 0
        while not self.halt.is_set():
            try:
                with psycopg.connect(self.cluster.url(self.node), autocommit=True) as connection:
                    while not self.halt.is_set():
                        n += 1
                        self.transfer(connection, n)
            except psycopg.Error as error:
                words = str(error).strip()
                if self.roams and (error.sqlstate in ELSEWHERE or any(told in words for told in NOT_LET_IN)):
                    self.sent_away.append((time.monotonic(), self.node, words))
                    self.node = self.node % self.cluster.nodes + 1
                else:
                    self.errors.append((time.monotonic(), error.sqlstate, words))
                time.sleep(0.02)

    def transfer(self, connection, n):
        one, two = sorted(((self.number * 7 + n * 13) % ACCOUNTS, (self.number * 31 + n * 17 + 1) % ACCOUNTS))
        try:
            with connection.transaction():
                connection.execute("update account set v = v - 1 where id = %s", (one,))
                connection.execute("update account set v = v + 1 where id = %s", (two,))
                connection.execute("insert into told values (%s, %s)", (self.number, n))
        except psycopg.Error as error:
            if error.sqlstate not in RETRY:
                raise
            return
        self.acknowledged.append(n)
        self.done_at.append(time.monotonic())

    def longest_wait(self, since, until):
        """The longest time without an acknowledged transfer that touches this span."""
        times = [since, *(at for at in self.done_at if since < at < until), until]
        return max(b - a for a, b in zip(times, times[1:]))


class Transfers:
    """Clients on some nodes of a cluster."""

    def __init__(self, cluster, nodes, each=2, roams=False):
        self.cluster = cluster
        cluster.psql(
            nodes[0],
            "drop table if exists account; drop table if exists told;"
            "create table account(id int primary key, v int not null);"
            f"insert into account select g, 1000 from generate_series(0, {ACCOUNTS - 1}) g;"
            "create table told(client int, n int, primary key (client, n));",
        )
        self.clients = [Client(cluster, node, node * 100 + i, roams) for node in nodes for i in range(each)]

    def start(self):
        for client in self.clients:
            client.start()
        return self

    def of(self, *nodes):
        return [client for client in self.clients if client.node in nodes]

    def stop(self):
        for client in self.clients:
            client.halt.set()
        for client in self.clients:
            client.join(60)
            assert not client.is_alive(), f"a client of node{client.node} hangs\n{self.cluster.logs()}"

    def check(self, nodes):
        """Nothing acknowledged is lost, nothing is half there, on any of these nodes."""
        for node in nodes:
            assert self.cluster.value(node, "select sum(v) from account") == str(1000 * ACCOUNTS), f"node{node}"
            told = self.cluster.value(node, "select client, n from told")
            told = {tuple(map(int, line.split("|"))) for line in told.splitlines()}
            acknowledged = {(client.number, n) for client in self.clients for n in client.acknowledged}
            lost = acknowledged - told
            assert not lost, f"node{node} has lost {len(lost)} acknowledged transfers: {sorted(lost)[:5]}\n{self.cluster.logs()}"
            # A commit that was under way when a connection was lost may have got through: one for each loss.
            for client in self.clients:
                extra = {n for number, n in told if number == client.number} - set(client.acknowledged)
                assert len(extra) <= len(client.errors) + len(client.sent_away), f"client {client.number}: {sorted(extra)} without having been told"
