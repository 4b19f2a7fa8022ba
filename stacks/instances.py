"""What Holdfast knows about EC2 instance types, from their names alone."""

import re

INSTANCE_TYPE_PATTERN = re.compile(r"[a-z][a-z0-9-]*\.[a-z0-9-]+")

#: Families with NVIDIA GPUs on x86_64 that the GPU image drives. Source: "AWS EC2 accelerated computing instance
#: types"; driver support as in the AMI's release notes; not verified on AWS. Without those that the image's open
#: driver does not drive (p3, p3dn) or that need another driver (g6f, gr6f), g4ad (AMD), g5g and p6e-gb200 (Arm),
#: and Trainium and Inferentia.
GPU_FAMILIES = frozenset(
    {"g4dn", "g5", "g6", "g6e", "g7", "g7e", "gr6"} | {"p4d", "p4de", "p5", "p5e", "p5en", "p6-b200", "p6-b300"}
)
#: Graviton families carry a `g` after their generation; a1 and the GB200 hosts are Arm as well.
_ARM = re.compile(r"[a-z]+[0-9]+[a-z]*g[a-z]*(-.*)?|a1|p6e-gb.*")


def family(instance_type: str) -> str:
    """Return an instance type's family: what is before the dot."""
    return instance_type.partition(".")[0]


def has_gpu(instance_type: str) -> bool:
    """Say whether the type has a GPU that the GPU image drives; this release's trainer does not use it yet."""
    return family(instance_type) in GPU_FAMILIES


def is_arm(instance_type: str) -> bool:
    """Say whether the type is Arm, for which there is no node image here."""
    return _ARM.fullmatch(family(instance_type)) is not None
