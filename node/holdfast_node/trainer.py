"""The trainer service: it becomes the process that the agent prepared, with that environment and nothing else.

It starts with empty scratch space: what an earlier generation of the job has left there, a model for example, is not
this one's. Checkpoints are elsewhere and stay.

It runs as the trainer's own user, so it decides nothing: arguments, environment and directory come from
`NodePaths.launch`, which that user can read and not write.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from holdfast_node.contract.errors import DocumentError, HoldfastError
from holdfast_node.contract.layout import NodePaths

#: Files of the trainer are readable by the agent (through the directories' setgid bit) and by nobody else.
UMASK = 0o027
_KEYS = {"argv", "env", "cwd"}


def read_launch(path: Path) -> tuple[list[str], dict[str, str], str]:
    """Return arguments, environment and working directory from a launch file.

    Raises:
        DocumentError: the file is missing or is not `{"argv": […], "env": {…}, "cwd": "…"}`, all of them strings.
    """
    try:
        launch: Any = json.loads(path.read_bytes())
    except OSError as error:
        raise DocumentError(f"cannot read {path.name}: {error.strerror}; the agent writes it for a job") from None
    except ValueError as error:
        raise DocumentError(f"{path.name} is not JSON: {error}") from None
    if not isinstance(launch, dict) or set(launch) != _KEYS:
        got = sorted(launch) if isinstance(launch, dict) else type(launch).__name__
        raise DocumentError(f"{path.name} must have the keys {sorted(_KEYS)}, got {got}")
    argv, env, cwd = launch["argv"], launch["env"], launch["cwd"]
    if not isinstance(argv, list) or not argv or not all(_is_argument(item) for item in argv):
        raise DocumentError(f"{path.name}: argv must be a list of strings, with at least a program")
    if not isinstance(env, dict) or not all(_is_name(name) and _is_argument(value) for name, value in env.items()):
        raise DocumentError(f"{path.name}: env must map names to strings")
    if not _is_argument(cwd) or not cwd.startswith("/") or not argv[0].startswith("/"):
        raise DocumentError(f"{path.name}: cwd and the program must be absolute paths")
    return argv, env, cwd


def main(arguments: list[str] | None = None) -> int:
    """Become the launched process; returns only with an error, said in one line."""
    parser = argparse.ArgumentParser(prog="holdfast_node.trainer", description="start the prepared trainer")
    parser.add_argument("--root", type=Path, default=Path("/"), help="the node's root directory")
    paths = NodePaths(parser.parse_args(arguments).root)
    try:
        argv, env, cwd = read_launch(paths.launch)
        _empty(paths.work)  # this directory only, whatever the launch file says
        os.umask(UMASK)
        os.chdir(cwd)
        sys.stdout.flush()
        os.execve(argv[0], argv, env)  # noqa: S606 - no shell is wanted
    except HoldfastError as error:
        print(f"trainer: {error}", file=sys.stderr)
    except OSError as error:
        print(f"trainer: cannot start {error.filename}: {error.strerror}", file=sys.stderr)
    return 1


def _empty(work: Path) -> None:
    """Remove all that the scratch space holds; links are removed, not followed."""
    for entry in list(work.iterdir()) if work.is_dir() else ():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _is_argument(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value


def _is_name(value: str) -> bool:
    return bool(value) and "=" not in value and "\0" not in value


if __name__ == "__main__":
    sys.exit(main())
