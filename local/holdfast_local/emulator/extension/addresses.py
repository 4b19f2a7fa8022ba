"""One book of addresses for a subnet: instances, endpoints' interfaces and mount targets never share one."""

from ipaddress import IPv4Network
from typing import Any

from holdfast_local.emulator.extension.seams import seam

#: AWS reserves the first four addresses and the last one of a subnet (VPC User Guide, "Subnet sizing").
_RESERVED_FIRST = 4


def install() -> None:
    """Have mount targets, whose addresses ministack picks by themselves, look at all that is taken."""
    efs = seam("ministack.services.efs", "_pick_address", "_mount_targets")
    stock = efs._pick_address

    def pick_address(cidr: str, used: set[str | None], requested: str | None, kind: str) -> Any:
        # A requested address is only held against the subnet's own, which are in `used`.
        return stock(cidr, used if requested or kind != "IPv4" else used | _taken(), requested, kind)

    efs._pick_address = pick_address


def free_address(subnet: dict[str, Any]) -> str:
    """Return the first address of a subnet that nothing has.

    Raises:
        ValueError: there is none.
    """
    network, taken = IPv4Network(subnet["CidrBlock"]), _taken(subnet["VpcId"])
    usable = (network[index] for index in range(_RESERVED_FIRST, network.num_addresses - 1))
    address = next((address for address in usable if str(address) not in taken), None)
    if address is None:
        raise ValueError(f"subnet {subnet['SubnetId']} ({network}) has no free address")
    return str(address)


def _taken(vpc_id: str | None = None) -> set[str]:
    """Return the addresses that are taken in a VPC, or in any."""
    ec2 = seam("ministack.services.ec2", "_instances", "_network_interfaces")
    efs = seam("ministack.services.efs", "_mount_targets")
    # A terminated instance keeps its address for as long as DescribeInstances shows it: a host that is still shutting
    # down never shares its address with a new one.
    owners = (*ec2._instances.values(), *ec2._network_interfaces.values(), *efs._mount_targets.values())
    return {
        str(owner.get("PrivateIpAddress") or owner.get("IpAddress"))
        for owner in owners
        if vpc_id is None or owner.get("VpcId", vpc_id) == vpc_id
    }
