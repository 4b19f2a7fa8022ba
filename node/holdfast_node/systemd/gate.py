"""What must be true before a trainer starts; what is not is the last line of its log, and so the job's cause.

It runs in the trainer's own sandbox, as its user (`ExecStartPre=`): what it can use, the trainer can.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from holdfast_node.contract.documents import NodeConfig
from holdfast_node.contract.errors import HoldfastError
from holdfast_node.contract.layout import NodePaths

#: How long the driver may take to answer. Without a persistence daemon it initialises every GPU first: eight of them
#: take about 20 s.
DRIVER_SECONDS = 60
#: How long one kernel may take, with the loading of MXNet and of CUDA's libraries.
KERNEL_SECONDS = 120
_KERNEL = ("-P", "-m", "holdfast_node.engines.mxnet.kernel")


def require_checkpoints(paths: NodePaths) -> None:
    """Raise HoldfastError unless a file system is mounted for the checkpoints.

    In the unit's view the directory is always a mount point: what counts is whether it is on another device.
    """
    mounted = paths.checkpoints.is_dir() and paths.checkpoints.stat().st_dev != paths.root.stat().st_dev
    if not mounted:
        raise HoldfastError(
            f"no file system is mounted at {paths.checkpoints}, so checkpoints would be lost with this node; the boot "
            "record of the node says why the mount failed"
        )


def require_gpu(python: str) -> str:
    """Return what the driver says of its GPUs, once it has answered and one kernel has run.

    Raises:
        HoldfastError: there is no driver or no GPU, or MXNet cannot use it.
    """
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    gpus = _run(query, DRIVER_SECONDS, "the NVIDIA driver", "use an image with the driver, and an NVIDIA instance type")
    if not gpus:
        raise HoldfastError("the NVIDIA driver finds no GPU; use an NVIDIA instance type")
    kernel = [python, *_KERNEL]
    _run(kernel, KERNEL_SECONDS, "one kernel", "the node's wheelhouse must hold the CUDA build of MXNet for this GPU")
    return gpus


def _run(argv: list[str], seconds: float, what: str, remedy: str) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise HoldfastError(f"{what} did not answer within {seconds:g} s; {remedy}") from None
    except OSError as error:
        raise HoldfastError(f"{what} cannot be asked: {argv[0]}: {error.strerror}; {remedy}") from None
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()
        raise HoldfastError(f"{what} failed with status {done.returncode}: {lines[-1].strip()}; {remedy}")
    return "; ".join(done.stdout.split("\n")).strip("; ")


def main() -> int:
    """Check what the trainer of the node below `--root` needs, and with `--gpu` what a GPU must do."""
    parser = argparse.ArgumentParser(description="Check what a trainer needs.")
    parser.add_argument("--root", type=Path, default=Path("/"))
    parser.add_argument("--gpu", action="store_true", help="require a GPU that runs a kernel")
    arguments = parser.parse_args()
    paths = NodePaths(arguments.root)
    try:
        config = NodeConfig.parse(paths.config.read_bytes())
        if config.file_system_id:
            require_checkpoints(paths)
        if arguments.gpu:
            print(f"gate: {require_gpu(sys.executable)}", flush=True)
    except (HoldfastError, OSError) as error:
        print(f"gate: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
