"""Errors of the operator's commands. Each is one message for a human and an exit code.

holdfast_node.contract.errors.HoldfastError
└── CliError             exit 1: refused or failed
    ├── ClusterError     the cluster cannot be found, or its stack lacks what this command needs
    ├── AwsError         AWS refused or could not be reached; the message says what to do
    ├── SubmitError      the job cannot be submitted; nothing was started
    │   └── PackError    the job's directory cannot be packed
    ├── RevocationError  the instance cannot be revoked; nothing was written
    │   └── NoMember     it is none of the cluster's, or nobody can tell; its denial was written
    ├── NotFoundError    no such job, log or model
    ├── JobFailed        exit 3: the job that was waited for did not succeed
    ├── PostureFailed    exit 4: a deployed cluster is not as it must be, or nobody can tell
    └── Unreadable       a check of the posture cannot read what it needs (holdfast_cli.posture.reading)

holdfast_node.models.ModelRefused (exit 1): a model does not match its signature, job or cluster; nothing was written.
"""

from typing import ClassVar

from holdfast_node.contract.errors import HoldfastError


class CliError(HoldfastError):
    """Root of what the commands refuse; `exit_code` is the process's."""

    exit_code: ClassVar[int] = 1


class ClusterError(CliError):
    """The cluster cannot be found, is ambiguous, or is not completely deployed."""


class AwsError(CliError):
    """An AWS call failed; the message holds the remedy."""


class SubmitError(CliError):
    """The job cannot be submitted; nothing was started."""


class PackError(SubmitError):
    """The job's directory cannot be packed into a code archive."""


class RevocationError(CliError):
    """The instance cannot be revoked; nothing was written."""


class NoMember(RevocationError):  # noqa: N818
    """The instance is none of the cluster's, or nobody can tell; its denial was written all the same."""


class NotFoundError(CliError):
    """There is no such job, log or model."""


class JobFailed(CliError):  # noqa: N818
    """The job that was waited for ended without success."""

    exit_code: ClassVar[int] = 3


class PostureFailed(CliError):  # noqa: N818
    """A check of the deployed cluster did not pass, or could not be made."""

    exit_code: ClassVar[int] = 4
