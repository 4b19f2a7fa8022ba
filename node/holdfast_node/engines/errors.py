"""What can go wrong with a training engine.

HoldfastError
└── EngineError            the engine cannot do what was asked (what, got, allowed, remedy)
    ├── SpecError          an optimizer that cannot be expressed, or a specification that is not valid
    │   └── ConflictError  a second, different optimizer for a job that has one
    ├── StateError         optimizer states that cannot be written or read
    ├── RefusedError       a peer sent what its role may not send: the job ends
    └── PortError          the pinned port is taken, or the trainer is not on it
"""

from holdfast_node.contract.errors import HoldfastError


class EngineError(HoldfastError):
    """The engine cannot do what was asked."""


class SpecError(EngineError):
    """An optimizer that cannot be expressed as data, or a specification that is not valid."""


class ConflictError(SpecError):
    """Two different instructions where the job can follow only one."""


class StateError(EngineError):
    """Optimizer states that cannot be written or read."""


class RefusedError(EngineError):
    """A peer sent what its role may not send."""


class PortError(EngineError):
    """The role's pinned port is taken, or the trainer does not listen on it."""
