"""The lab: MXNet clusters in network namespaces of this machine, vanilla and Holdfast, to attack and to measure.

It runs the parts that a node runs, without agent and AWS, on the local hosts' own switch (`holdfast_local.hosts`).
It needs root; see `require`. Everything ends with its context manager, and with the driver however that ends.

    with Network() as network:
        cluster = HoldfastCluster(network, script=SCRIPT, workers=2, servers=1)
        outsider = network.host("outsider", "10.77.9.66")            # no security group
        with network.capture() as capture:
            cluster.start()                                          # tunnels, then trainers
            cluster.wait()                                           # {"worker0": 0, …}
        capture.count(b"known bytes"), capture.payload_bytes(), list(capture.segments())

- `Network()`: `host(name, address, groups)`, `regroup`, `groups` + `enforce()`, `drops()`, `capture()`,
  `divert(port=…, to=host)` and `restore()` (a man in the middle, by DNAT on the switch), `directory`, `close()`.
- `Host`: `start(argv, user=…) -> Process`, `run(argv, user=…, stdin=…)`, `python(code, …, user=…)` (the node's
  interpreter), `call(function)` (in its network, for sockets), `listens`, `await_listener`; a user is a `User` or uid.
- `Process`: `log()`, `events(name)`, `await_text`, `wait`, `kill`, `running`, and `popen` with the real process id.
- `VanillaCluster`, `HoldfastCluster` (`network`, `script` or `code` + `entry`, `args`, `workers` 1-16, `servers`
  1-8, `env`): `start(*names)`, `processes`, `log(name)`, `logs()`, `wait(*names)`, `stop()`, `peers`, `host(name)`,
  `paths[name]`, `checkpoints`. Nodes are `scheduler0`, `server0`…, `worker0`…. One cluster per network.
- `HoldfastCluster` also: `authority`, `tunnels`, `start_tunnel`, `firewall`, `launches`, `rendezvous`.
- `Authority(cluster)`: `issue(directory, role=…, instance_id=…, address=…, lifetime=…, at=…)`, with the enrolment
  function's own profile, signed by a key in memory instead of KMS.
"""

from holdfast_local.lab.authority import Authority
from holdfast_local.lab.capture import Capture, Segment
from holdfast_local.lab.clusters import CLUSTER, Cluster, HoldfastCluster, VanillaCluster, address_of
from holdfast_local.lab.errors import LabError
from holdfast_local.lab.hosts import NODE_PYTHON, OPEN_FILES, Host, Process, python_environment, require
from holdfast_local.lab.network import NETWORK, OPEN_GROUP, Network, role_group

__all__ = [
    "CLUSTER",
    "NETWORK",
    "NODE_PYTHON",
    "OPEN_FILES",
    "OPEN_GROUP",
    "Authority",
    "Capture",
    "Cluster",
    "HoldfastCluster",
    "Host",
    "LabError",
    "Network",
    "Process",
    "Segment",
    "VanillaCluster",
    "address_of",
    "python_environment",
    "require",
    "role_group",
]
