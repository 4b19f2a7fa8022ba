"""What a machine's `mount.efs` asks: whether its role may mount an access point, and which directory that shows.

On AWS the file system decides by the client's signed TLS certificate. Here the question comes over a socket that only
this one machine has, so who asks is known; what its role may do is read from the embedded AWS as it is at that moment.
"""

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from botocore.exceptions import BotoCoreError, ClientError

from holdfast_local.emulator.names import RECORD_VARIABLE
from holdfast_local.hosts.machines.permission import Policy, allowed

MOUNT = "elasticfilesystem:ClientMount"
WRITE = "elasticfilesystem:ClientWrite"
_MAX_BYTES = 4096
_SECONDS = 10


class MountRefusedError(Exception):
    """A machine may not mount what it asked for; the message says why."""


@dataclass(frozen=True)
class Mount:
    """What an access point gives: the directory below the file system's, and who owns all that is in it."""

    directory: str
    uid: int
    gid: int
    mode: int


class FileSystems:
    """The account's file systems; `efs` and `iam` are clients of the embedded AWS."""

    def __init__(self, *, efs: Any, iam: Any) -> None:
        self._efs, self._iam = efs, iam

    def mount(self, *, file_system: str, access_point: str, role: str) -> Mount:
        """Return what a role with this ARN gets to see.

        Raises:
            MountRefusedError: there is no such thing, or the role may not.
        """
        try:
            system, point = self._find(file_system, access_point)
            own, resource = self._role_policies(role.rpartition("/")[2]), self._system_policy(file_system)
        except (ClientError, BotoCoreError) as error:
            raise MountRefusedError(f"cannot be decided: {error}") from None
        context = {"aws:SecureTransport": "true", "elasticfilesystem:AccessPointArn": point["AccessPointArn"]}
        for action in (MOUNT, WRITE):
            if not allowed(
                role=own,
                resource=resource,
                principal=role,
                action=action,
                arn=system["FileSystemArn"],
                context=context,
            ):
                raise MountRefusedError(f"{role} may not {action} through {access_point} of {file_system}")
            _record(role, action, system["FileSystemArn"], context)
        user, root = point.get("PosixUser"), point["RootDirectory"]
        if not user:
            raise MountRefusedError(f"{access_point} pins no user id; it must, or a node's root could write as anybody")
        permissions = root.get("CreationInfo", {}).get("Permissions", "700")
        # Below the file system, by the access point: two of them never see each other's files.
        return Mount(directory=access_point, uid=user["Uid"], gid=user["Gid"], mode=int(permissions, 8))

    def _find(self, file_system: str, access_point: str) -> tuple[dict[str, Any], dict[str, Any]]:
        systems = self._efs.describe_file_systems()["FileSystems"]
        system = next((item for item in systems if item["FileSystemId"] == file_system), None)
        if system is None:
            raise MountRefusedError(f"there is no file system {file_system}")
        points = self._efs.describe_access_points(FileSystemId=file_system)["AccessPoints"]
        point = next((item for item in points if item["AccessPointId"] == access_point), None)
        if point is None:
            raise MountRefusedError(f"{file_system} has no access point {access_point}")
        return system, point

    def _system_policy(self, file_system: str) -> list[Policy]:
        try:
            return [json.loads(self._efs.describe_file_system_policy(FileSystemId=file_system)["Policy"])]
        except ClientError as error:
            if error.response["Error"]["Code"] == "PolicyNotFound":
                return []
            raise

    def _role_policies(self, role: str) -> list[Policy]:
        found = []
        for attached in self._iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]:
            arn = attached["PolicyArn"]
            version = self._iam.get_policy(PolicyArn=arn)["Policy"]["DefaultVersionId"]
            found.append(self._iam.get_policy_version(PolicyArn=arn, VersionId=version)["PolicyVersion"]["Document"])
        for name in self._iam.list_role_policies(RoleName=role)["PolicyNames"]:
            found.append(self._iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"])
        return [json.loads(unquote(policy)) if isinstance(policy, str) else policy for policy in found]


def _record(role: str, action: str, resource: str, context: dict[str, str]) -> None:
    """Note a permission that was needed, as the embedded AWS does for its own (emulator/extension/recorder.py)."""
    if path := os.environ.get(RECORD_VARIABLE):
        name = role.rpartition("/")[2]
        line = {"principal": f"arn:aws:sts::0:assumed-role/{name}/mount", "action": action, "resource": resource}
        with Path(path).open("a") as record:
            record.write(json.dumps({**line, "keys": sorted(context), "decision": "Allow", "sid": "mount"}) + "\n")


class MountTarget:
    """Answers one machine's questions on a socket at `path`, and makes the directories that it grants."""

    def __init__(self, path: Path, *, systems: FileSystems, role: str, disk: Path, log: Callable[[str], None]) -> None:
        self._systems, self._role, self._disk, self._log = systems, role, disk, log
        self._listener = _listen(path)
        threading.Thread(target=self._serve, name="mount-target", daemon=True).start()

    def close(self) -> None:
        """Stop answering."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(_SECONDS)
                with connection.makefile("rb") as lines:
                    answer = self._answer(lines.readline(_MAX_BYTES))
                connection.sendall(json.dumps(answer).encode() + b"\n")

    def _answer(self, question: bytes) -> dict[str, str]:
        try:
            asked = json.loads(question)
            system, point = str(asked["file_system"]), str(asked["access_point"])
        except (ValueError, KeyError, TypeError):
            return {"error": "the question must name file_system and access_point"}
        try:
            mount = self._systems.mount(file_system=system, access_point=point, role=self._role)
        except MountRefusedError as refusal:
            self._log(f"mount of {system} refused: {refusal}")
            return {"error": str(refusal)}
        directory = self._disk / mount.directory
        directory.mkdir(exist_ok=True)
        os.chown(directory, mount.uid, mount.gid)
        directory.chmod(mount.mode)
        return {"directory": mount.directory}


def _listen(path: Path) -> socket.socket:
    """Return a listening socket at a path of any length: unix(7) allows 107 bytes, which a descriptor's path keeps."""
    path.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(f"/proc/self/fd/{directory}/{path.name}")
        listener.listen(8)
    except OSError:
        listener.close()
        raise
    finally:
        os.close(directory)
    return listener
