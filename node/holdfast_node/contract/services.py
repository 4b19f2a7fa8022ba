"""The services of a node, in start order: one table for systemd units and for local hosts.

A service manager (systemd on EC2, `holdfast_local` on one machine) runs `once` services to their end as root, starts
the others as their user when `waits_for_request` is false or when the agent has created
`NodePaths.start_request(name)`, and writes `NodePaths.exit_record(name)` when one has ended. The main processes of
trainer and tunnel lead sessions of their own (as systemd's do), `NodePaths.main_pid(name)` has their ids from the start
on (`ExecStartPost=` with `$MAINPID`), and the agent can read their states (no `ProtectProc=` for it). When the agent
creates `NodePaths.reload_request(name)`, the manager removes that file and sends SIGHUP to the main process of a
service that reloads; one that does not run is not started: it reads its files when it starts. A service with `restarts`
is started again when a signal has ended it (systemd's `Restart=on-abnormal`); a status that it chose itself stands. One
with a `watchdog_seconds` changes `NodePaths.alive(name)` within `WATCHDOG_START_SECONDS` of its start
(`TimeoutStartSec=`) and then more often than that, and is killed when it does not (`WatchdogSec=`): a stopped process
ends neither by itself nor by asking.

`peers` is the one root process after the boot: at the agent's request it admits a job's addresses, from a document
that it parses as strictly as the agent did, and ends.
"""

import sys
from dataclasses import dataclass

from holdfast_node.contract.layout import NodePaths, User

#: A tenth of this is how often the agent says that it lives.
AGENT_WATCHDOG_SECONDS = 10
#: How long a service with a watchdog may take to its first sign of life: Python's imports on a busy, cold machine.
WATCHDOG_START_SECONDS = 60


@dataclass(frozen=True, kw_only=True)
class Service:
    """A process of a node. `user` None is root; `once` services end before the next one starts.

    One that `reloads` reads its configuration and files again on SIGHUP, and keeps its connections. One that `restarts`
    takes up again what the killed one has left.
    """

    name: str
    argv: tuple[str, ...]
    user: User | None
    once: bool = False
    waits_for_request: bool = False
    reloads: bool = False
    restarts: bool = False
    watchdog_seconds: int | None = None


def services(paths: NodePaths, *, python: str = sys.executable, stunnel: str = "stunnel") -> tuple[Service, ...]:
    """Return the node's services; every Python one takes `--root` so that it finds its directories."""
    root = ("--root", str(paths.root))
    return (
        Service(name="firewall", argv=(python, "-m", "holdfast_node.firewall", *root), user=None, once=True),
        Service(
            name="agent",
            argv=(python, "-m", "holdfast_node.agent", *root),
            user=User.AGENT,
            restarts=True,
            watchdog_seconds=AGENT_WATCHDOG_SECONDS,
        ),
        Service(
            name="peers",
            argv=(python, "-m", "holdfast_node.firewall", *root, "--admit-peers"),
            user=None,
            waits_for_request=True,
        ),
        Service(
            name="tunnel",
            argv=(stunnel, str(paths.stunnel_config)),
            user=User.TUNNEL,
            waits_for_request=True,
            reloads=True,
        ),
        Service(
            name="trainer",
            argv=(python, "-m", "holdfast_node.trainer", *root),
            user=User.TRAINER,
            waits_for_request=True,
        ),
    )
