"""Where things are: users, directories on a node, keys in the buckets.

A node's directories are relative to a root (`/` on a real host), so that hosts without a mount namespace of their
own can live in a directory.
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from holdfast_node.contract.roles import NodeRole, Role


class User(StrEnum):
    """The unprivileged users of a node; root only runs the boot's one-shot steps and the `peers` service."""

    AGENT = "holdfast-agent"
    TUNNEL = "holdfast-tunnel"
    TRAINER = "holdfast-trainer"


#: Numeric ids, fixed so that the EFS access point can pin the trainer's. Debian policy 9.2.2 reserves 60000-64999
#: for allocation by packages that ask for a fixed id; Amazon Linux 2023 allocates below 60000.
UIDS: dict[User, int] = {User.AGENT: 64101, User.TUNNEL: 64102, User.TRAINER: 64103}
#: Whom an operator's shell belongs to where `remote_access` is `session-manager`; elsewhere there is no such user.
#: It has no password, no sudo rule and no part in the groups of the others.
OPERATOR = "holdfast-operator"
OPERATOR_UID = 64104


@dataclass(frozen=True)
class NodePaths:
    """The directories and files of one node below `root`.

    Owners and modes (created by root before any service starts; setgid so that files inherit the group):
    `state` agent 0700; `tls` agent:tunnel 2750; `job` agent:trainer 2750; `work` trainer:agent 2750;
    `run` root 0755, in it `start`, `reload` and `alive` agent 0755 and `exit` root 0755: the agent asks, and cannot put
    another directory where root writes; `logs` root 0755 with one file per service owned by its user; `checkpoints`
    trainer 0700.
    """

    root: Path = Path("/")

    @property
    def config(self) -> Path:
        """The node's constants (`NodeConfig` as JSON), written by user data."""
        return self.root / "etc/holdfast/node.json"

    @property
    def state(self) -> Path:
        """The agent's own files: nobody else reads them."""
        return self.root / "var/lib/holdfast/agent"

    @property
    def tls(self) -> Path:
        """Key, certificate, CA and stunnel configuration: written by the agent, read by the tunnel."""
        return self.root / "var/lib/holdfast/tls"

    @property
    def stunnel_config(self) -> Path:
        """The configuration that the tunnel service runs with."""
        return self.tls / "stunnel.conf"

    @property
    def peers(self) -> Path:
        """The `Rendezvous` whose peers the node's firewall is to admit; the `peers` service reads it."""
        return self.state / "peers.json"

    @property
    def job(self) -> Path:
        """The verified job: `code/` and `launch.json`; the trainer reads it and cannot write it."""
        return self.root / "var/lib/holdfast/job"

    @property
    def code(self) -> Path:
        """The job's verified code, unpacked."""
        return self.job / "code"

    @property
    def launch(self) -> Path:
        """What the trainer service starts: `{"argv": […], "env": {…}, "cwd": "…"}`."""
        return self.job / "launch.json"

    @property
    def work(self) -> Path:
        """The trainer's scratch space and working directory; the agent reads the exported model from it."""
        return self.root / "var/lib/holdfast/work"

    @property
    def checkpoints(self) -> Path:
        """The mount point of the shared, encrypted file system."""
        return self.root / "mnt/checkpoints"

    @property
    def run(self) -> Path:
        """Start and reload requests from the agent; exit records and process ids from the service manager."""
        return self.root / "run/holdfast"

    @property
    def logs(self) -> Path:
        """One log file per service: `<service>.log`."""
        return self.root / "var/log/holdfast"

    def start_request(self, service: str) -> Path:
        """The file whose appearance starts a service (a systemd path unit's `PathExists=`)."""
        return self.run / "start" / service

    def reload_request(self, service: str) -> Path:
        """The file whose appearance has the service manager send SIGHUP to a service; the manager removes it."""
        return self.run / "reload" / service

    def alive(self, service: str) -> Path:
        """The file that a service with a watchdog touches for as long as it runs."""
        return self.run / "alive" / service

    def exit_record(self, service: str) -> Path:
        """Where the service manager writes `{"status": int}` once a service has ended (negative: signal)."""
        return self.run / "exit" / f"{service}.json"

    def main_pid(self, service: str) -> Path:
        """Where the service manager writes the process id, in decimal, of a service that it has started."""
        return self.run / "exit" / f"{service}.pid"

    def log(self, service: str) -> Path:
        """The log file of a service."""
        return self.logs / f"{service}.log"


class JobsBucket:
    """Keys in the jobs bucket. Each prefix has one writer, which IAM holds."""

    CONTROL = "control/current.json"  # writer: the state machine; reader: the scheduler
    LOCK = "control/lock.json"  # which execution holds the cluster; writer: the state machine
    RENDEZVOUS = "rendezvous/current.json"  # writer: the scheduler; readers: all nodes
    PROOFS = "pki/proofs/"  # prefix of the hashes of used proofs; writer: the enrolment function; nobody reads them
    BOOTS = "boot/"  # prefix of all nodes' boots, see `boot`
    DENIED = "denied/"  # prefix of denials; writer: the operator; readers: the enrolment function, all nodes

    @staticmethod
    def ca_certificate(generation: int) -> str:
        """The certificate of a generation of the cluster's CA; the first is 1. Writer: the enrolment function."""
        return "pki/ca.pem" if generation == 1 else f"pki/ca-{generation}.pem"

    @staticmethod
    def denial(instance_id: str) -> str:
        """The object whose existence, whatever it holds, denies an instance for ever. Writer: the operator."""
        return f"{JobsBucket.DENIED}{instance_id}.json"

    @staticmethod
    def job_document(job_id: str) -> str:
        """The signed job document, a DSSE envelope. Writer: the operator."""
        return f"jobs/{job_id}/job.dsse.json"

    @staticmethod
    def job_code(job_id: str) -> str:
        """The job's code archive, a gzipped tar. Writer: the operator."""
        return f"jobs/{job_id}/code.tar.gz"

    @staticmethod
    def node_prefix(role: Role) -> str:
        """Registrations of a role's nodes. Writer: that role."""
        return f"nodes/{role}/"

    @staticmethod
    def node(role: Role, instance_id: str) -> str:
        """One node's registration."""
        return f"nodes/{role}/{instance_id}.json"

    @staticmethod
    def boot_prefix(role: NodeRole) -> str:
        """How boots of a role's nodes went. Writer: that role; readers: the scheduler, the operator."""
        return f"{JobsBucket.BOOTS}{role}/"

    @staticmethod
    def boot(role: NodeRole, instance_id: str) -> str:
        """How one node's boot went (`BootRecord`)."""
        return f"{JobsBucket.boot_prefix(role)}{instance_id}.json"

    @staticmethod
    def result_prefix(role: Role) -> str:
        """Results of a role's nodes, by job. Writer: that role."""
        return f"results/{role}/"

    @staticmethod
    def result(job_id: str, generation: int, role: Role, instance_id: str) -> str:
        """How a node's part in a generation of a job ended."""
        return f"results/{role}/{job_id}/{generation}/{instance_id}.json"

    @staticmethod
    def status(job_id: str) -> str:
        """The job's record, kept by the scheduler."""
        return f"status/{job_id}.json"


class ModelsBucket:
    """Keys in the models bucket. Writer: the worker role."""

    @staticmethod
    def prefix(job_id: str) -> str:
        """The folder of a job's exported model."""
        return f"models/{job_id}/files/"

    @staticmethod
    def bundle(job_id: str) -> str:
        """The model's signature: an OpenSSF model-signing bundle (Sigstore bundle v0.3 with a DSSE envelope)."""
        return f"models/{job_id}/model.sig"


#: A file inside every signed model that binds it to its job (see docs/adr/0004-signed-models.md).
MODEL_RECORD = "holdfast-model.json"
