"""What Holdfast knows about EC2 instance types, from their names alone."""

import re

INSTANCE_TYPE_PATTERN = re.compile(r"[a-z][a-z0-9-]*\.[a-z0-9-]+")

#: Families with NVIDIA GPUs on x86_64 whose GPUs the GPU image drives and MXNet's CUDA build has machine code for, with
#: their compute capability. Sources: "AWS EC2 accelerated computing instance types", NVIDIA's "CUDA GPUs" page; driver
#: support as in the AMI's release notes; not verified on AWS. Without those that the image's open driver does not drive
#: (p3, p3dn) or that need another driver (g6f, gr6f), g4ad (AMD), g5g and p6e-gb200 (Arm), Trainium and Inferentia.
GPU_FAMILIES = {
    **{"g4dn": 7.5, "g5": 8.6, "g6": 8.9, "g6e": 8.9, "gr6": 8.9},
    **{"p4d": 8.0, "p4de": 8.0},
}
#: Families whose GPUs are newer than MXNet 1.9.1: its CUDA build has machine code for 5.0 to 8.6, which runs on later
#: GPUs of the same major capability only, and no PTX, from which a driver could make more.
NEWER_GPU_FAMILIES = {
    **{"p5": 9.0, "p5e": 9.0, "p5en": 9.0, "p6-b200": 10.0, "p6-b300": 10.3},
    **{"g7": 12.0, "g7e": 12.0},
}
#: Graviton families carry a `g` after their generation; a1 and the GB200 hosts are Arm as well.
_ARM = re.compile(r"[a-z]+[0-9]+[a-z]*g[a-z]*(-.*)?|a1|p6e-gb.*")


def family(instance_type: str) -> str:
    """Return an instance type's family: what is before the dot."""
    return instance_type.partition(".")[0]


def has_gpu(instance_type: str) -> bool:
    """Say whether the type has a GPU that a worker trains on: the GPU image drives it, and MXNet has code for it."""
    return family(instance_type) in GPU_FAMILIES


def is_arm(instance_type: str) -> bool:
    """Say whether the type is Arm, for which there is no node image here."""
    return _ARM.fullmatch(family(instance_type)) is not None
