"""The attack table: the one source of `make attacks`, of the tests, and of docs/threats.md."""

from dataclasses import replace

from tests.attacks import (
    artifacts,
    claiming,
    commands,
    enrolling,
    filling,
    floods,
    joining,
    listening,
    node,
    predicting,
)
from tests.attacks.commands import on_holdfast, on_vanilla
from tests.attacks.model import Attack, Verdict

from holdfast_node.contract.roles import Role

#: The threats, in the words of the design's table (its rows that an attack can try).
THREATS = {
    "T1": "no authentication of cluster nodes",
    "T2": "plaintext between nodes",
    "T3": "`set_optimizer` sends a pickle that servers execute",
    "T4": "any peer can crash or flood scheduler and servers",
    "B1": "least privilege, not root",
    "B2": "private network, only the connections needed",
    "B4": "checkpoints that are whole",
    "B5": "signed models, jobs and nodes",
    "D1": "predictions leak the model",
}

_NOBODY_ASKS = "MXNet asks nobody who they are: the attacker joins without any certificate"
_IDENTITY = (
    Attack(
        id="rogue-worker",
        threat="T1",
        title="a rogue worker joins",
        against_vanilla="an outsider starts `DMLC_ROLE=worker` with the scheduler's address",
        against_holdfast="dial the role ports without a certificate: from outside, from within all security groups, "
        "and from a node's own host",
        defence="security groups, the node's firewall, mutual TLS 1.3",
        vanilla=joining.rogue_worker_joins_vanilla,
        holdfast=joining.nobody_joins_holdfast,
    ),
    Attack(
        id="rogue-server",
        threat="T1",
        title="a rogue server joins",
        against_vanilla="an outsider starts `DMLC_ROLE=server` before the job's own",
        against_holdfast="dial scheduler and worker with a server's role in a forged certificate",
        defence="the peers of a job are listed by exact name",
        vanilla=joining.rogue_server_joins_vanilla,
        holdfast=joining.rogue_server_at_holdfast,
    ),
    Attack(
        id="wrong-role",
        threat="T1",
        title="a certificate of the wrong role",
        against_vanilla=_NOBODY_ASKS,
        against_holdfast="worker to worker, server to server, and a listed instance under another role",
        defence="each node accepts only the roles that dial it",
        vanilla=joining.no_identity_in_vanilla,
        holdfast=joining.wrong_role_at_holdfast,
    ),
    Attack(
        id="foreign-ca",
        threat="T1",
        title="a certificate of a foreign CA",
        against_vanilla=_NOBODY_ASKS,
        against_holdfast="worker 1's exact names, signed by another CA with the same subject, from worker 1's address",
        defence="the CA's key is in KMS; nodes trust that key's certificate only",
        vanilla=joining.no_identity_in_vanilla,
        holdfast=joining.foreign_ca_at_holdfast,
    ),
    Attack(
        id="expired",
        threat="T1",
        title="an expired certificate",
        against_vanilla=_NOBODY_ASKS,
        against_holdfast="worker 1's own names, signed by the cluster's CA, a day over",
        defence="certificates live for a day and are renewed",
        vanilla=joining.no_identity_in_vanilla,
        holdfast=joining.expired_at_holdfast,
    ),
    Attack(
        id="unlisted",
        threat="T1",
        title="a valid certificate of a node that is not in the job",
        against_vanilla=_NOBODY_ASKS,
        against_holdfast="the right role, the right CA, another instance",
        defence="the peers of a job are listed by exact name",
        vanilla=joining.no_identity_in_vanilla,
        holdfast=joining.unlisted_at_holdfast,
    ),
    Attack(
        id="stolen-certificate",
        threat="T1",
        title="a stolen certificate, used from another address",
        against_vanilla=_NOBODY_ASKS,
        against_holdfast="worker 1's own key and certificate, on an instance in the groups and on another node",
        defence="a peer's certificate is accepted from that peer's address only",
        vanilla=joining.no_identity_in_vanilla,
        holdfast=joining.stolen_at_holdfast,
    ),
    Attack(
        id="revoked",
        threat="T1",
        title="a revoked node",
        against_vanilla=_NOBODY_ASKS,
        against_holdfast="a worker that trains is denied; it goes on, dials again, and enrols again",
        defence="`holdfast revoke`: its peers end their tunnels, the next generation does not know it, nor enrolment",
        vanilla=joining.no_identity_in_vanilla,
        holdfast=enrolling.revoked_node,
    ),
    Attack(
        id="replayed-enrolment",
        threat="T1",
        title="a replayed enrolment",
        against_vanilla=_NOBODY_ASKS,
        against_holdfast="a node's whole recorded request, sent again as it is and with the attacker's own key",
        defence="a proof is bound to one key and counts once",
        vanilla=joining.no_identity_in_vanilla,
        holdfast=enrolling.replayed_enrolment,
    ),
    Attack(
        id="impersonation",
        threat="T1",
        title="a compromised worker impersonates a server",
        against_vanilla="a worker's host also joins as a server",
        against_holdfast="the traffic for the server is diverted to a worker, which answers with its own certificate",
        defence="a dialler checks the exact name of the peer that it wants",
        vanilla=listening.impersonation_in_vanilla,
        holdfast=listening.impersonation_in_holdfast,
    ),
)


def _claim(name: str, title: str, what: str) -> Attack:
    return Attack(
        id=f"claims-{name}",
        threat="T1",
        title=f"an admitted worker passes for {title}",
        against_vanilla=f"a worker's host {what}, before that node has connected",
        against_holdfast="the same, through its own tunnel, as the trainer's user",
        defence="a peer's connections have its own address behind the tunnel, and the guard holds them to it",
        vanilla=claiming.claimed_in_vanilla(name),
        holdfast=claiming.claimed_in_holdfast(name),
    )


_CLAIMS = (
    _claim("worker", "another worker", "dials the server with worker 0's identity"),
    _claim("server", "the server", "joins at the scheduler as a server"),
    _claim("scheduler", "the scheduler", "dials the server with the scheduler's identity and a false list of nodes"),
)

_WIRE = (
    Attack(
        id="eavesdropping",
        threat="T2",
        title="eavesdropping",
        against_vanilla="capture everything on the switch and search it for a gradient's bytes",
        against_holdfast="the same",
        defence="TLS 1.3 on every byte between nodes",
        vanilla=listening.eavesdropping_on_vanilla,
        holdfast=listening.eavesdropping_on_holdfast,
    ),
    Attack(
        id="man-in-the-middle",
        threat="T2",
        title="a man in the middle",
        against_vanilla="the network leads workers to a proxy that replaces gradients in flight",
        against_holdfast="the same, and the proxy ends TLS with the server's exact name from a CA of its own",
        defence="both ends are verified before the first byte",
        vanilla=listening.middle_of_vanilla,
        holdfast=listening.middle_of_holdfast,
    ),
)


def _command(name: str, title: str, command: commands.Command, **changes: object) -> Attack:
    attack = Attack(
        id=name,
        threat="T3",
        title=title,
        against_vanilla="a worker that has joined sends it through MXNet's own C function",
        against_holdfast="the same, by a worker that was admitted and is compromised",
        defence="servers follow a closed list of commands, all data, and log and end on everything else",
        vanilla=on_vanilla(command),
        holdfast=on_holdfast(command),
    )
    return replace(attack, **changes)  # type: ignore[arg-type]


_COMMANDS = (
    _command("pickled-optimizer", "a pickled optimizer (command 0)", commands.PICKLE),
    _command("command-1", "multi-precision in the middle of a push (command 1)", commands.MULTI_PRECISION),
    _command("command-2", "stop, from a worker that is not the first (command 2)", commands.STOP),
    _command("command-3", "a change of mode in a running job (command 3)", commands.SYNC_MODE),
    _command("command-4", "junk as gradient compression (command 4)", commands.COMPRESSION),
    _command("profiler-file", "the profiler writes a file (command 5)", commands.PROFILER),
    _command("unknown-command", "an unknown command (99)", commands.UNKNOWN, vanilla_expected=Verdict.UNHARMED),
)


def _message(name: str, title: str, kind: str, what: str) -> Attack:
    return Attack(
        id=name,
        threat="T4",
        title=title,
        against_vanilla=f"a worker made by hand joins and sends the server {what}",
        against_holdfast="the same, by a worker that was admitted: through its own tunnel, as the trainer's user",
        defence="a guard in every MXNet process looks at each message before MXNet does",
        vanilla=commands.message_to_vanilla(kind),
        holdfast=commands.message_to_holdfast(kind),
    )


_MESSAGES = (
    _message("admitted-terminate", "an admitted worker ends a server", "terminate", "ps-lite's TERMINATE"),
    _message("admitted-add-node", "an admitted worker diverts another", "elsewhere", "a false address of worker 0"),
    _message("admitted-oversize", "an oversize message of an admitted worker", "huge", "a frame of 2^64-1 bytes"),
)

_FILLED = Attack(
    id="admitted-endless",
    threat="T4",
    title="an admitted worker fills a server's memory",
    against_vanilla="a worker made by hand joins and sends the server 1 GiB of a message that has no end",
    against_holdfast="the same, by a worker that was admitted: through its own tunnel, as the trainer's user",
    defence="the guard compares what came in by connection with what it has judged: the rest has a limit",
    vanilla=filling.filled_in_vanilla,
    holdfast=filling.filled_in_holdfast,
)

_KINDS = {
    "garbage": "random bytes",
    "oversize": "a ZeroMQ frame that says it has 2^64-1 bytes, and one of 1 GiB",
}
_CRASHES = tuple(
    Attack(
        id=f"{kind}-{role}",
        threat="T4",
        title=f"{'garbage' if kind == 'garbage' else 'oversize messages'} on the {role}'s port",
        against_vanilla=f"an outsider sends {what}",
        against_holdfast=f"{what}, from a host that may reach the port, without its certificate",
        defence="nothing reaches the trainer before both ends are authenticated",
        vanilla=floods.killed_by(kind, role),
        holdfast=floods.survives(kind, role),
    )
    for kind, what in _KINDS.items()
    for role in Role
)

_HELD = {
    "idle": ("10,000 connections", "open connections and send nothing"),
    "half-tls": ("half-open handshakes", "begin a message on every connection and send no more of it"),
    "slow": ("slow-loris", "send a byte at a time on every connection"),
}
_HELD_FLOODS = tuple(
    Attack(
        id=f"flood-{kind}",
        threat="T4",
        title=title,
        against_vanilla=f"{how}, on the scheduler's port, before the nodes join",
        against_holdfast=f"{how}, on all three role ports at once, from hosts that may reach them, while the job runs",
        defence="connections and handshakes are limited by peer, in the kernel, and time out in the tunnel",
        vanilla=floods.never_forms(kind),
        holdfast=floods.goes_on_under(kind),
        holdfast_expected=Verdict.UNHARMED,
    )
    for kind, (title, how) in _HELD.items()
)
_FLOODS = (
    *_HELD_FLOODS,
    Attack(
        id="flood-certified",
        threat="T4",
        title="a compromised worker floods with its valid certificate",
        against_vanilla="connections that hold the scheduler's descriptors: MXNet knows no certificates",
        against_holdfast="TLS connections with worker 1's own certificate, as fast as they go, to scheduler and server",
        defence="connections and handshakes are limited by peer, in the kernel",
        vanilla=floods.never_forms("idle"),
        holdfast=floods.certified_flood,
        holdfast_expected=Verdict.UNHARMED,
    ),
)

_NODE = (
    Attack(
        id="scan-outsider",
        threat="B2",
        title="a port scan by an outsider",
        against_vanilla="try every port of every node",
        against_holdfast="the same",
        defence="security groups",
        vanilla=node.scan_of_vanilla,
        holdfast=node.outsider_s_scan_of_holdfast,
    ),
    Attack(
        id="scan-peer",
        threat="B2",
        title="a port scan by a peer",
        against_vanilla="try every port of every node",
        against_holdfast="the same, from a worker's host as root",
        defence="security groups by role and port; the trainer listens on loopback only",
        vanilla=node.scan_of_vanilla,
        holdfast=node.peer_s_scan_of_holdfast,
    ),
    Attack(
        id="credentials",
        threat="B1",
        title="metadata and credentials from the trainer's user",
        against_vanilla="a training script asks the metadata service for the node's role credentials",
        against_holdfast="the same, and reads the node's key and the agent's files",
        defence="the node's firewall by user; file modes",
        vanilla=node.metadata_from_vanilla,
        holdfast=node.metadata_from_holdfast,
    ),
    Attack(
        id="writing",
        threat="B1",
        title="writing outside checkpoints",
        against_vanilla="a training script writes wherever its user can",
        against_holdfast="the same, in a local host's file system tree",
        defence="code and configuration are the agent's; everything else is read-only",
        vanilla=node.writing_in_vanilla,
        holdfast=node.writing_in_holdfast,
    ),
)

_STORED = (
    Attack(
        id="tampered-checkpoint",
        threat="B4",
        title="a tampered checkpoint",
        against_vanilla="flip a bit of the parameters; put a pickle in place of the optimizer's states",
        against_holdfast="the same; and the pickle under a manifest that fits",
        defence="a digest of every file; no format that executes",
        vanilla=artifacts.checkpoint_in_vanilla,
        holdfast=artifacts.checkpoint_at_holdfast,
    ),
    Attack(
        id="tampered-model",
        threat="B5",
        title="a tampered model",
        against_vanilla="flip a bit of its file and load it",
        against_holdfast="flip, add, remove and rename files; another key; a cut signature",
        defence="OpenSSF model signature by a key in KMS, verified before load",
        vanilla=artifacts.model_in_vanilla,
        holdfast=artifacts.model_at_holdfast,
    ),
    Attack(
        id="tampered-job",
        threat="B5",
        title="a tampered job document",
        against_vanilla="change the job's command line",
        against_holdfast="change the entry; sign with another key; present another job's or cluster's document",
        defence="the operator signs it with a key in KMS; nodes verify it",
        vanilla=artifacts.command_line_in_vanilla,
        holdfast=artifacts.job_document_at_holdfast,
    ),
    Attack(
        id="tampered-code",
        threat="B5",
        title="a tampered code archive",
        against_vanilla="change the script in the folder that is copied to the nodes",
        against_holdfast="another script, one byte changed, one byte added",
        defence="its digest is in the signed job document",
        vanilla=artifacts.code_in_vanilla,
        holdfast=artifacts.code_archive_at_holdfast,
    ),
    Attack(
        id="tampered-bundle",
        threat="B5",
        title="a tampered node bundle",
        against_vanilla="change a package that the nodes import",
        against_holdfast="another bundle under the right name, with the kit's real user data",
        defence="its digest is in the launch template",
        vanilla=artifacts.package_in_vanilla,
        holdfast=artifacts.node_bundle_at_holdfast,
    ),
)

_PREDICTIONS = (
    Attack(
        id="extraction",
        threat="D1",
        title="model extraction by equation solving",
        against_vanilla="d + 1 probabilities of a logistic regression (Tramèr et al., 2016)",
        against_holdfast="the same, from what a predictor answers by default, and by retraining on it",
        defence="a predictor answers with labels, or with rounded probabilities",
        vanilla=predicting.extraction_from_vanilla,
        holdfast=predicting.extraction_from_holdfast,
    ),
)

ATTACKS: tuple[Attack, ...] = (
    *_IDENTITY,
    *_CLAIMS,
    *_WIRE,
    *_COMMANDS,
    *_CRASHES,
    *_MESSAGES,
    _FILLED,
    *_FLOODS,
    *_NODE,
    *_STORED,
    *_PREDICTIONS,
)
