"""The units do what contract/services.py says, under the real systemd."""

import json
import time

import pytest
from tests.boot.systemd_node import PATHS, SystemdNode, until

from holdfast_node.contract.documents import Peer, Rendezvous
from holdfast_node.contract.layout import UIDS, User
from holdfast_node.contract.roles import DEFAULT_PORTS, Role
from holdfast_node.tunnel import stunnel_config

PYTHON = "/opt/holdfast/venv/bin/python"
ME = Peer(role=Role.SERVER, rank=0, instance_id="i-00000002", address="127.0.0.1")
PEERS = (
    Peer(role=Role.SCHEDULER, rank=0, instance_id="i-00000001", address="10.9.0.1"),
    ME,
    Peer(role=Role.WORKER, rank=0, instance_id="i-00000003", address="10.9.0.3"),
)
RENDEZVOUS = Rendezvous(job_id="digits-1", generation=1, peers=PEERS)
SLEEP = "import time; print('UP', flush=True); time.sleep(600)"


@pytest.fixture
def node(server: SystemdNode) -> SystemdNode:
    server.start()
    for service in ("trainer", "tunnel", "peers"):
        server.take_back(service)
    return server


def run_trainer(node: SystemdNode, code: str) -> None:
    """Start a trainer that says UP."""
    before = node.log("trainer").count("UP")
    node.launch(PYTHON, "-S", "-c", code)
    node.ask("trainer")
    until(lambda: node.log("trainer").count("UP") > before, "the trainer")


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("pass", 0),
        ("raise SystemExit(75)", 75),
        ("import os; os.kill(os.getpid(), 9)", -9),
        ("import os; os.abort()", -6),
    ],
    ids=["well", "with a status", "killed", "aborted"],
)
def test_an_end_is_recorded_and_is_no_start(node: SystemdNode, code: str, status: int) -> None:
    node.launch(PYTHON, "-S", "-c", code)
    node.ask("trainer")
    assert node.ended("trainer") == status
    listed = node.run("stat", "--format=%a %u", str(PATHS.exit_record("trainer"))).stdout
    assert listed.split() == ["644", "0"]
    until(lambda: node.state("holdfast-trainer.service") in ("inactive", "failed"), "the unit's end")
    # The request is there still, and the process that stands for it: nothing is started for it again.
    assert node.state("holdfast-request@trainer.service") == "active"
    inode = node.run("stat", "--format=%i %Y", str(PATHS.exit_record("trainer"))).stdout
    time.sleep(1.5)  # what must not happen has no condition to await
    assert node.run("stat", "--format=%i %Y", str(PATHS.exit_record("trainer"))).stdout == inode


def test_a_new_request_starts_it_again_at_once_and_every_time(node: SystemdNode) -> None:
    for status in range(1, 9):  # more than systemd's own limit of starts
        node.launch(PYTHON, "-S", "-c", f"raise SystemExit({status})")
        node.ask("trainer")
        assert node.ended("trainer") == status


def test_taking_the_request_back_stops_it_with_its_children(node: SystemdNode) -> None:
    run_trainer(node, f"import subprocess, sys; subprocess.Popen([sys.executable, '-S', '-c', {SLEEP!r}]); {SLEEP}")
    assert node.status("trainer") is None
    group = node.show("holdfast-trainer.service", "MainPID")
    assert node.run("cat", str(PATHS.main_pid("trainer"))).stdout.strip() == group["MainPID"]
    node.take_back("trainer")
    assert node.ended("trainer") == -15
    assert node.run("find", "/proc", "-maxdepth", "1", "-uid", str(UIDS[User.TRAINER])).stdout == ""


def test_what_does_not_end_by_asking_is_killed(node: SystemdNode) -> None:
    run_trainer(node, f"import signal; signal.signal(15, signal.SIG_IGN); {SLEEP}")
    began = time.monotonic()
    node.take_back("trainer")
    assert node.ended("trainer") == -9
    assert time.monotonic() - began < 10  # what the agent waits (control.STOP_SECONDS)


def test_only_the_agent_can_ask(node: SystemdNode) -> None:
    for user in (User.TRAINER, User.TUNNEL):
        assert "Permission denied" in node.run("touch", str(PATHS.start_request("tunnel")), user=user).stderr
    assert "Permission denied" in node.run("touch", str(PATHS.exit_record("tunnel")), user=User.AGENT).stderr
    assert "Permission denied" in node.run("mv", str(PATHS.run / "exit"), "/tmp", user=User.AGENT).stderr


def test_nobody_starts_a_service_that_was_not_asked_for(node: SystemdNode) -> None:
    assert "failed" in node.systemctl("start", "holdfast-trainer.service")
    assert node.state("holdfast-trainer.service") != "active"


def test_a_trainer_without_its_file_system_does_not_start_and_says_so(node: SystemdNode) -> None:
    node.run("umount", str(PATHS.checkpoints))
    try:
        node.launch(PYTHON, "-S", "-c", "print('STARTED')")
        before = node.log("trainer").count("STARTED")
        node.ask("trainer")
        assert node.ended("trainer") == 1
        assert node.log("trainer").splitlines()[-1].startswith("gate: no file system is mounted at /mnt/checkpoints")
        assert node.log("trainer").count("STARTED") == before
    finally:
        node.mount_checkpoints()


def test_the_firewall_admits_peers_each_time_that_the_agent_asks(node: SystemdNode) -> None:
    text = RENDEZVOUS.to_json().decode()
    node.run("sh", "-c", f"umask 027; printf '%s' '{text}' > {PATHS.peers}", user=User.AGENT)
    for _ in range(2):
        node.run("nft", "flush", "map", "inet", "holdfast", "admitted")
        node.run("rm", "-f", str(PATHS.exit_record("peers")))
        node.run("touch", str(PATHS.start_request("peers")), user=User.AGENT)  # as it does: the file stays
        assert node.ended("peers") == 0
        assert "10.9.0.3 : " in node.run("nft", "list", "map", "inet", "holdfast", "admitted").stdout


def test_a_document_that_is_none_is_refused_with_a_record(node: SystemdNode) -> None:
    node.run("sh", "-c", f"echo nonsense > {PATHS.peers}", user=User.AGENT)
    node.ask("peers")
    assert node.ended("peers") == 1
    assert node.log("peers").splitlines()[-1].startswith("firewall: ")


def test_the_tunnel_runs_and_reloads_and_a_reload_starts_nothing(node: SystemdNode) -> None:
    config = stunnel_config(cluster="demo", me=ME, rendezvous=RENDEZVOUS, ports=DEFAULT_PORTS, paths=PATHS)
    make = (
        f"umask 027; cd {PATHS.tls}; printf '%s' \"$1\" > {PATHS.stunnel_config};"
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout key.pem -out cert.pem"
        " -days 2 -subj /CN=x; cp cert.pem ca.pem; chmod 640 key.pem"
    )
    assert node.run("sh", "-c", make, "sh", config, user=User.AGENT).returncode == 0
    reload = str(PATHS.reload_request("tunnel"))

    def configured() -> int:
        return node.log("tunnel").count("Configuration successful")

    node.run("touch", reload, user=User.AGENT)
    until(lambda: node.run("cat", reload).returncode != 0, "the request's removal")
    until(lambda: node.state("holdfast-reload@tunnel.service") == "inactive", "the reload's end")
    assert node.state("holdfast-tunnel.service") != "active"
    before = configured()
    node.ask("tunnel")
    until(lambda: configured() == before + 1, "the tunnel")
    pid = node.show("holdfast-tunnel.service", "MainPID")
    node.run("touch", reload, user=User.AGENT)
    until(lambda: configured() == before + 2, "the reload")
    assert node.show("holdfast-tunnel.service", "MainPID") == pid
    node.take_back("tunnel")
    assert node.ended("tunnel") == 0  # stunnel ends by itself when it is asked to


def test_the_agent_is_ready_when_it_says_so(node: SystemdNode) -> None:
    node.systemctl("stop", "holdfast-agent.service")
    node.run("sh", "-c", "echo wait > /etc/holdfast/do")
    node.systemctl("start", "--no-block", "holdfast-agent.service")
    until(lambda: node.run("cat", str(PATHS.alive("agent"))).returncode == 0, "the first sign of life")
    assert node.state("holdfast-agent.service") == "activating"
    node.systemctl("stop", "holdfast-agent.service")
    node.start()
    assert node.state("holdfast-agent.service") == "active"


@pytest.mark.parametrize("name", ["STOP", "TERM", "KILL"])
def test_an_agent_that_is_stopped_or_killed_is_started_again(node: SystemdNode, name: str) -> None:
    first = node.show("holdfast-agent.service", "MainPID")
    node.systemctl("kill", "--kill-whom=main", f"--signal=SIG{name}", "holdfast-agent.service")

    def again() -> bool:
        return (
            node.state("holdfast-agent.service") == "active" and node.show("holdfast-agent.service", "MainPID") != first
        )

    until(again, "the agent's return", 40)


def test_an_agent_that_ends_by_itself_stays_ended(node: SystemdNode) -> None:
    node.systemctl("stop", "holdfast-agent.service")
    node.start(agent="exit 3")
    assert node.ended("agent") == 3
    time.sleep(2.5)  # RestartSec= and more; what must not happen has no condition to await
    assert node.state("holdfast-agent.service") == "failed"


def test_limits_are_those_of_the_units(node: SystemdNode) -> None:
    limits = node.show("holdfast-trainer.service", "TasksMax", "OOMPolicy", "LimitCORE", "MemoryMax")
    assert limits["TasksMax"] == "4096" and limits["OOMPolicy"] == "kill" and limits["LimitCORE"] == "0"
    assert limits["MemoryMax"] != "infinity"
    agent = node.show("holdfast-agent.service", "MemoryMax", "TasksMax", "OOMScoreAdjust")
    assert agent == {"MemoryMax": str(1 << 30), "TasksMax": "128", "OOMScoreAdjust": "-500"}


def test_a_failed_firewall_means_that_nothing_starts(fresh: SystemdNode) -> None:
    fresh.run("sh", "-c", "echo nonsense > /etc/holdfast/node.json")
    fresh.start()
    assert fresh.state("holdfast-firewall.service") == "failed"
    assert fresh.log("firewall").startswith("firewall: ")
    fresh.launch(PYTHON, "-S", "-c", SLEEP)
    for service in ("trainer", "tunnel", "peers"):
        fresh.ask(service)
    until(lambda: fresh.state("holdfast-request@peers.service") == "active", "the request is seen")
    states = {name: fresh.state(f"holdfast-{name}.service") for name in ("agent", "trainer", "tunnel", "peers")}
    assert states == dict.fromkeys(states, "inactive")
    assert json.loads(fresh.run("cat", str(PATHS.exit_record("firewall"))).stdout) == {"status": 1}


def test_a_node_comes_back_by_itself_after_its_power_failed(fresh: SystemdNode) -> None:
    fresh.start()
    fresh.launch(PYTHON, "-S", "-c", SLEEP)
    fresh.ask("trainer")
    until(lambda: fresh.state("holdfast-trainer.service") == "active", "the trainer")
    fresh.end()
    fresh.boot()
    until(lambda: fresh.state("holdfast.target") == "active", "the node's return", 60)
    assert fresh.state("holdfast-agent.service") == "active"
    assert "table inet holdfast" in fresh.run("nft", "list", "tables").stdout
    assert fresh.state("holdfast-trainer.service") == "inactive"  # its request was in /run: the agent decides
    fresh.mount_checkpoints()
    fresh.ask("trainer")
    until(lambda: fresh.state("holdfast-trainer.service") == "active", "the trainer's return")
    order = fresh.show("holdfast-firewall.service", "ActiveEnterTimestampMonotonic")
    network = fresh.show("network-pre.target", "ActiveEnterTimestampMonotonic")
    agent = fresh.show("holdfast-agent.service", "ActiveEnterTimestampMonotonic")
    times = [int(entry["ActiveEnterTimestampMonotonic"]) for entry in (order, network, agent)]
    assert times == sorted(times)
