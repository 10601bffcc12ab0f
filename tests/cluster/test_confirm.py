"""A lost node that nothing can fence: nothing of it is recovered until somebody vouches for it, by whichever node he does."""

import re
import signal
import subprocess

import pytest
from by_hand import ByHand
from conftest import BIN, free_port, wait_until

NO_WAY = '[ha]\nfencing_method = "command"\n[ha.fencing]\ncommand = ["false"]\n'


@pytest.fixture
def cluster(folder):
    cluster = ByHand(folder / "confirm", 3, NO_WAY)
    cluster.pg, cluster.http, cluster.interconnect = free_port(), free_port(), free_port()
    cluster.folder.mkdir()
    cluster.format("--max-nodes", "3")
    cluster.configure()
    for node in cluster.numbers():
        cluster.start_node(node)
    cluster.wait_healthy(120)
    yield cluster
    for process in cluster.processes.values():
        process.kill()
        process.wait()


def fence(cluster, *options):
    http = [option for node in cluster.numbers() for option in ("--http", f"{cluster.host(node)}:{cluster.http}")]
    command = [BIN / "rusty-db-cli", "node", "fence", "node3", *options, *http]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_what_no_method_can_fence_is_recovered_when_an_operator_vouches_for_it(cluster):
    def log(node):
        return (cluster.folder / f"node{node}.log").read_text()

    cluster.psql(3, "create table kept(id int primary key); insert into kept values (1)")
    cluster.processes[3].send_signal(signal.SIGKILL)
    wait_until(cluster, lambda: "node fence node3 --confirm" in log(1) + log(2), 60)
    # The command alone has the methods tried, which fail as before.
    done = fence(cluster)
    assert done.returncode == 0 and "node1: node3 is being fenced" in done.stdout, done
    wait_until(cluster, lambda: "can't fence" in log(1).partition("an operator has it fenced")[2], 60)
    assert "node3" in cluster.health(1)["members"]
    done = fence(cluster, "--confirm")
    assert done.returncode == 0 and "node2: node3 is being fenced" in done.stdout, done
    wait_until(cluster, lambda: cluster.health(2).get("members") == ["node1", "node2"], 60)
    assert cluster.value(2, "select count(*) from kept") == "1"
    said = log(1) + log(2)
    assert "recovered on his word" in said
    assert re.search("can't fence.* held_back=[1-9]", said), "it is tried twice a second, and said every ten seconds"
