"""The guard of a node's MXNet process: what its role may be sent, and what happens on anything else.

A refusal is one security event that names the sender, and the end of the process with `EXIT_REFUSED`: nothing more
of the sender is processed, and the agent reports the last line as the job's cause. Going on without the message
would leave its honest sender waiting, or train something that nobody asked for.
"""

import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from holdfast_node.contract.roles import Role, overlay_address
from holdfast_node.contract.statuses import EXIT_REFUSED
from holdfast_node.engines.errors import EngineError
from holdfast_node.engines.mxnet import backlog, events, intake, messages, native, policy, ports, repairs
from holdfast_node.engines.mxnet.messages import Message
from holdfast_node.engines.mxnet.peers import Peers

_ending = threading.Lock()


class Guard:
    """Guards one process, which is `role` of the job that its environment describes."""

    def __init__(self, library: Any, role: Role) -> None:
        """Hook into MXNet's native library before its first connection.

        Raises:
            EngineError: another build of MXNet, or an environment without the job's size.
        """
        servers, workers = int(os.environ["DMLC_NUM_SERVER"]), int(os.environ["DMLC_NUM_WORKER"])
        own = self._own_id(role, servers, workers)
        self._authors: dict[str, set[str]] = {}
        self._cause = ""
        #: Address of the process's KVStore, for a server: set it before the server runs.
        self.store = 0
        self.server: policy.Server | None = None
        message, add_node, start = None, None, None
        if role is Role.WORKER:
            add_node = policy.Worker(servers, workers).check
        elif role is Role.SCHEDULER:
            message = policy.Scheduler(servers, workers).check
        else:
            self.server = policy.Server((own - messages.server_id(0)) // 2, servers, workers)
            message, start = self._check_server, self._start_server
        hooks = native.Hooks(
            peers=Peers(own, servers, workers),
            refuse=refuse,
            start=start,
            message=message,
            add_node=add_node,
            max_frame_bytes=messages.MAX_BODY_BYTES if role is Role.SCHEDULER else native.MAX_FRAME_BYTES,
            origins=role is Role.SCHEDULER,
        )
        self._interposer = native.Interposer(library, Path(library._name), hooks)
        if message is not None:
            threading.Thread(target=self._watch, args=(hooks.peers.at,), name="backlog", daemon=True).start()

    def installed(self, name: str, multi_precision: bool) -> None:
        """Note the optimizer that this server now has; data and commands are judged by it."""
        if self.server is not None:
            self.server.optimizer, self.server.multi_precision = True, multi_precision
        events.emit("optimizer", name=name)

    def report(self, reason: str, **facts: object) -> None:
        """Log what the controller refused, with the workers that sent it where it came as a command."""
        authors = ", ".join(sorted(self._authors.get(str(facts.get("sha256")), ())))
        self._cause = f"{authors}: {reason}" if authors else reason
        events.refused(reason, **({"sender": authors} if authors else {}), **facts)

    def end(self) -> NoReturn:
        """End the process; the last report is the cause."""
        _end(self._cause)

    def _start_server(self) -> None:
        repairs.unset_multi_precision(self.store)

    def _check_server(self, message: Message) -> bool:
        assert self.server is not None
        passes = self.server.check(message)
        if message.simple and message.head == policy.CONTROLLER:
            digest = hashlib.sha256(message.body).hexdigest()
            self._authors.setdefault(digest, set()).add(messages.describe(message.sender))
        return passes

    def _watch(self, at: Callable[[str], int]) -> NoReturn:
        """Look again and again at what peers have under way, and end the process when it is more than they may."""
        own, seen, gate = ports.own_address(), backlog.Backlog(at), intake.Intake()
        reported = False
        try:
            while True:
                judged = dict(self._interposer.judged)  # before what was received
                under_way = seen.look(judged, backlog.received(own))
                for node, size in under_way.items():
                    limit = self._limit(node)
                    if limit is not None and size > limit:
                        self._refuse_backlog(node, size, limit)
                if self.server is not None:
                    queued = intake.used_bytes() - sum(under_way.values())
                    taking = gate.look(queued, self._allowance(), time.monotonic(), time.process_time())
                    self._interposer.taking = taking
                    if gate.full and not reported:  # training is slow from here on, and somebody will ask why
                        events.emit("queue_full", used_bytes=queued, allowance_bytes=self._allowance())
                        reported = True
                time.sleep(backlog.LOOK_SECONDS)
        except BaseException as error:  # without this thread there would be no limit
            refuse(f"the guard failed: {type(error).__name__}: {error}", messages.ANONYMOUS)

    def _limit(self, node: int) -> int | None:
        """Return how many bytes a peer may have under way; None: no limit."""
        if node == messages.ANONYMOUS:  # of many peers, on a machine whose connections prove nothing
            return None
        if self.server is None:
            return backlog.SCHEDULER_BYTES
        values = self.server.values
        if node == messages.worker_id(0) and not values.gradients:  # it sends the model
            return None
        return self._allowance()

    def _allowance(self) -> int:
        assert self.server is not None
        return backlog.SERVER_BYTES + backlog.MODELS * self.server.values.size_bytes

    @staticmethod
    def _refuse_backlog(node: int, size: int, limit: int) -> NoReturn:
        refuse(f"at most {limit} bytes may be under way that are no whole message yet, got {size}", node)

    @staticmethod
    def _own_id(role: Role, servers: int, workers: int) -> int:
        host = os.environ["DMLC_NODE_HOST"]
        for node_id, address in messages.members(servers, workers).items():
            if address == host and messages.role_of(node_id) is role:
                return node_id
        raise EngineError(
            f"DMLC_NODE_HOST must be the overlay address of one of the job's {servers} servers and {workers} workers "
            f"or its scheduler ({overlay_address(Role.SCHEDULER, 0)}), got {host}"
        )


def refuse(reason: str, sender: int, **facts: object) -> NoReturn:
    """Log what a peer sent as a security event, and end the process."""
    _ending.acquire()  # for good: what other threads find out meanwhile changes nothing
    who = messages.describe(sender)
    events.refused(reason, sender=who, fatal=True, **facts)
    _end(f"{who}: {reason}")


def _end(cause: str) -> NoReturn:
    sys.stderr.flush()
    os.write(2, f"\nRefusedError: {' '.join(cause.split())[:250]}\n".encode())
    os._exit(EXIT_REFUSED)
