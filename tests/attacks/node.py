"""Attacks on and from a node: B1 and B2, what the trainer's own user can reach, and who can reach the node."""

import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.attacks.arenas import Arena, Job, program, tell
from tests.attacks.model import Outcome, Verdict, refused, succeeded

from holdfast_local.hosts.fabric import METADATA_ADDRESS
from holdfast_local.hosts.metadata import Metadata, MetadataServer, leaves
from holdfast_local.hosts.namespaces import listen
from holdfast_local.hosts.setup import SEPARATE, HostSetup
from holdfast_local.lab import NODE_PYTHON, OPEN_GROUP, Host, LabError, Network, python_environment
from holdfast_node.contract.layout import UIDS, User

#: What an attacker asks an instance for first: a token, then its role's keys (IMDSv2).
_STEAL = """
import urllib.request
def ask(path, **settings):
    request = urllib.request.Request("http://169.254.169.254/latest/" + path, **settings)
    return urllib.request.urlopen(request, timeout=3).read().decode()
token = ask("api/token", method="PUT", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"})
try:
    print(ask("meta-data/iam/security-credentials/node", headers={"X-aws-ec2-metadata-token": token}))
except OSError as error:
    print(error)
"""
_SECRET = "the-role-s-secret-key"


def _ports(arena: Arena) -> list[str]:
    return ["1-1200", "9000-9200"] if arena.small else ["1-65535"]


def _scan(arena: Arena, job: Job, host: Host, names: Iterable[str]) -> dict[str, list[int]]:
    """Return the open ports that a host finds on each of these nodes, all scanned at once."""

    def scan(name: str) -> tuple[str, list[int]]:
        return name, tell(host, "scan", job.cluster.peers[name].address, *_ports(arena), seconds=300)

    with ThreadPoolExecutor() as pool:
        return dict(pool.map(scan, names))


def scan_of_vanilla(arena: Arena) -> Outcome:
    job = arena.vanilla
    found = _scan(arena, job, job.network.hosts["outsider"], job.cluster.peers)
    evidence = "; ".join(f"{name}: {', '.join(map(str, ports)) or 'none'}" for name, ports in found.items())
    verdict = Verdict.SUCCEEDED if all(found.values()) else Verdict.UNHARMED
    return Outcome(verdict, f"an outsider finds open {evidence}")


def outsider_s_scan_of_holdfast(arena: Arena) -> Outcome:
    job = arena.holdfast
    before = job.network.drops().refused
    found = _scan(arena, job, job.outsider, job.cluster.peers)
    dropped = job.network.drops().refused - before
    if any(found.values()):
        return Outcome(Verdict.SUCCEEDED, f"an outsider finds open {found}")
    if not dropped:
        raise LabError("the security groups must have dropped the scan, or it was not tried")
    return refused(f"no port of any of {len(found)} nodes answers; the security groups dropped {dropped} packets")


def peer_s_scan_of_holdfast(arena: Arena) -> Outcome:
    """From worker 1 as root: what its role needs answers, and nothing else."""
    job = arena.holdfast
    allowed = {"scheduler0": [9091], "server0": [9092], "worker0": []}
    found = _scan(arena, job, job.cluster.host("worker1"), allowed)
    if found != allowed:
        return Outcome(Verdict.SUCCEEDED, f"a worker finds open {found}, its role needs {allowed}")
    return refused("a worker finds scheduler 9091 and server 9092, which its role needs, and nothing on its peer")


def _with_metadata(host: Host) -> MetadataServer:
    known = leaves(instance={"InstanceId": "i-00000001"}, address=host.address, region="r", account="1", profile=None)
    known["meta-data/iam/security-credentials/node"] = json.dumps({"SecretAccessKey": _SECRET})
    return MetadataServer(host.call(lambda: listen(METADATA_ADDRESS, 80)), Metadata(leaves=dict(known)))


def metadata_from_vanilla(_: Arena) -> Outcome:
    with Network() as network:
        host = network.host("node", "10.77.2.9", [OPEN_GROUP])
        server = _with_metadata(host)
        said = host.python(_STEAL, user=User.TRAINER)
        server.close()
    if _SECRET not in said:
        return Outcome(Verdict.REFUSED, said)
    return succeeded("a training script reads the node's role credentials from the metadata service")


def metadata_from_holdfast(arena: Arena) -> Outcome:
    """As the trainer's and the tunnel's user; the agent's user, which is to reach it, does."""
    job = arena.holdfast
    host = job.cluster.host("worker1")
    server = _with_metadata(host)
    tries = {}
    for user in User:
        done = host.run([NODE_PYTHON, "-c", _STEAL], user=user, env=python_environment())
        tries[user] = done.stdout if _SECRET in done.stdout else done.stderr.strip().splitlines()[-1]
    server.close()
    if _SECRET not in tries[User.AGENT]:
        raise AssertionError(f"the agent must reach the metadata service, or no refusal proves anything: {tries}")
    if any(_SECRET in said for user, said in tries.items() if user is not User.AGENT):
        return Outcome(Verdict.SUCCEEDED, "a user other than the agent's reads the node's credentials")
    secrets = _readable_secrets(arena)
    if secrets:
        return Outcome(Verdict.SUCCEEDED, f"the trainer's user reads {secrets}")
    return refused(f"{tries[User.TRAINER][:80]}; neither the node's key nor the agent's files can be read")


def _readable_secrets(arena: Arena) -> list[str]:
    """Return the names of the node's secret files that the trainer's user can read."""
    paths = arena.holdfast.cluster.paths["worker1"]
    code = (
        "import os, sys\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n"
        "        os.listdir(path) if os.path.isdir(path) else open(path).close()\n"
        "        print(path)\n"
        "    except PermissionError:\n"
        "        pass\n"
    )
    wanted = [str(path) for path in (paths.tls / "key.pem", paths.tls, paths.state)]
    return arena.holdfast.cluster.host("worker1").python(code, *wanted, user=User.TRAINER).splitlines()


def writing_in_vanilla(_: Arena) -> Outcome:
    """An ordinary user starts an ordinary script: its code, its shell's start-up file and its packages are its own."""
    with Network() as network:
        host = network.host("node", "10.77.2.9", [OPEN_GROUP])
        home = host.directory / "home"
        for name in ("train.py", ".profile", "site/package.py"):
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_text("")
        for path in (home, *home.rglob("*")):
            os.chown(path, UIDS[User.TRAINER], UIDS[User.TRAINER])
        argv = [NODE_PYTHON, program("write"), "here", str(home)]
        found = json.loads(host.run(argv, user=User.TRAINER, env=python_environment()).stdout)
        names = [str(Path(path).relative_to(home)) for path in found if Path(path).is_file()]
    return succeeded(f"it changed its own {', '.join(names)}") if names else Outcome(Verdict.REFUSED, "nothing")


def writing_in_holdfast(_: Arena) -> Outcome:
    """In the file system tree of a local host, as the trainer's user."""
    allowed = ("/mnt/checkpoints", "/var/lib/holdfast/work", "/tmp", "/var/tmp", "/dev/shm")
    with Network() as network:
        host = network.host("node", "10.77.2.9", [OPEN_GROUP])
        disk, shared = host.directory / "disk", host.directory / "shared"
        for path in (disk, shared):
            path.mkdir()
        setup = HostSetup(
            instance_id="i-00000001",
            hostname="node",
            mode="root",
            users=SEPARATE,
            disk=str(disk),
            shared_disk=str(shared),
            python=str(NODE_PYTHON),
            endpoint_url="",
            region="r",
            ca_file=None,
        )
        inner = [NODE_PYTHON, "-c", Path(program("write")).read_text(), "tree", setup.to_json().decode()]
        argv = ["unshare", "--mount", "--pid", "--fork", "--kill-child", *inner]
        done = host.run(argv, env=python_environment())
    if done.returncode:
        raise LabError(f"the host's tree cannot be entered: {done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    outside = [path for path in found if not path.startswith(allowed)]
    if outside or not any(path.startswith(allowed[0]) for path in found):
        return Outcome(Verdict.SUCCEEDED, f"writable outside: {outside[:5]}; in all {found[:5]}")
    return refused(f"of the whole tree only {', '.join(found)} can be written")
