"""Where MXNet's CUDA build finds CUDA's libraries: beside itself.

The wheels of NVIDIA's libraries lie in directories of their own, where no loader looks. libmxnet.so's own search path
is its directory (`readelf -d`: RPATH `${ORIGIN}`), and comes before the environment's and the system's: links from
there need no variable in any process's environment, and the CUDA libraries that a GPU image brings, some of them under
the same names, are never mixed in. Only libcuda.so.1 is the system's: it comes with the driver.
"""

import argparse
import os
import sysconfig
from pathlib import Path


def link_libraries(site: Path) -> list[str]:
    """Link all of `site`'s CUDA libraries into the directory of its MXNet, and return their names.

    There are none, and nothing is linked, where MXNet is its build for CPUs. Doing it twice changes nothing.
    """
    target = site / "mxnet"
    found = {library.name: library for library in sorted((site / "nvidia").glob("*/lib/lib*.so*"))}
    for name, library in found.items():
        link = target / name
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(library, target))
    return list(found)


def main() -> None:
    """Link the CUDA libraries of the interpreter that runs this."""
    argparse.ArgumentParser(prog="python -m holdfast_node.engines.mxnet.cuda", description=main.__doc__).parse_args()
    link_libraries(Path(sysconfig.get_paths()["purelib"]))


if __name__ == "__main__":
    main()
