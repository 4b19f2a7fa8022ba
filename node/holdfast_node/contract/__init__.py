"""The facts that every part of Holdfast agrees on. Standard library only.

Node, kit, operator's CLI and local hosts import names, ports, paths and document formats from here and never
from each other. Nothing in this package touches a disk, a socket or a clock.
"""
