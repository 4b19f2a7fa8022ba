"""Try to write everywhere, as a training script can, and print as JSON what could be: `tree SETUP` or `here DIR…`.

With `tree`, it first becomes a local host: it builds the host's file system tree (`holdfast_local.hosts.rootfs`) from
the setup in SETUP, enters it, makes the node's directories, and becomes the trainer's user.
"""

import json
import os
import stat
import sys
from pathlib import Path

#: Not files: what the kernel shows, and the terminals and null devices that anybody may write to.
KERNEL = ("/proc", "/sys", "/dev")


def writable(roots: list[str]) -> list[str]:
    found = []
    for root in roots:
        for folder, folders, files in os.walk(root):
            if folder.startswith(KERNEL):
                folders.clear()
                continue
            if os.access(folder, os.W_OK):
                probe = Path(folder, ".attack")
                try:
                    probe.touch()
                    probe.unlink()
                    found.append(folder)
                except OSError:
                    pass
            for name in files:
                path = Path(folder, name)
                if os.access(path, os.W_OK) and stat.S_ISREG(path.lstat().st_mode):
                    try:
                        with path.open("ab"):
                            found.append(str(path))
                    except OSError:
                        continue
    return sorted(found)


def enter(setup_text: str) -> None:
    from holdfast_local.hosts.rootfs import build
    from holdfast_local.hosts.rootfs import enter as enter_tree
    from holdfast_local.hosts.setup import HostSetup, make_directories
    from holdfast_node.contract.layout import UIDS, NodePaths, User

    setup = HostSetup.parse(setup_text)
    os.umask(0o022)
    tree = Path(setup.disk).parent / "tree"
    tree.mkdir()
    build(tree, setup)
    enter_tree(tree)
    paths = NodePaths(Path("/"))
    make_directories(paths, UIDS)
    paths.code.mkdir()
    for path in (paths.launch, paths.code / "train.py", paths.config, paths.tls / "key.pem"):
        path.write_text("")
        os.chown(path, UIDS[User.AGENT], UIDS[User.TRAINER if path.is_relative_to(paths.job) else User.TUNNEL])
        path.chmod(0o640)
    os.setgroups([])
    os.setresgid(*[UIDS[User.TRAINER]] * 3)
    os.setresuid(*[UIDS[User.TRAINER]] * 3)


if __name__ == "__main__":
    if sys.argv[1] == "tree":
        enter(sys.argv[2])
        print(json.dumps(writable(["/"])))
    else:
        print(json.dumps(writable(sys.argv[2:])))
