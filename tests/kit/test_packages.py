"""The names of Amazon Linux 2023's packages that nodes install, against what was published."""

import re
from pathlib import Path

from tests.kit.support import ROOT

#: Looked up on 2026-11-24 in stored copies of published texts, not on an instance: a version, and where it is named.
#: AL2023's repositories are not reachable from where this is built, so this is a record; a changed list must renew it.
#: The release notes are below https://docs.aws.amazon.com/linux/al2023/release-notes/.
PUBLISHED = {
    "python3.11": ("3.11.15-1.amzn2023.0.5", "release notes, relnotes-2023.12.20260803, updated packages"),
    "nftables": ("1.0.4-3.amzn2023.0.3", "release notes, relnotes-2023.12.20260803, updated packages"),
    "amazon-efs-utils": ("3.1.1-1.amzn2023", "release notes, vercmp-AL2023.11-AL2023.11"),
    "libgomp": ("11.4.1-2.amzn2023.0.2", "release notes, 2023.1.20230912, packages of the image"),
    "stunnel": ("5.58-1.amzn2023.0.2", "what dnf printed where users installed amazon-efs-utils, which needs it"),
    "libquadmath": ("11.3.1-4.amzn2023.0.2", "a scanner's list of the packages that an advisory on gcc fixed, x86_64"),
    # mkfs.ext4, for the scratch volume. The source package's name, which is that of the package in Fedora too.
    "e2fsprogs": ("1.46.5-2.amzn2023.0.2", "a container image's list of source packages"),
}


def listed() -> list[str]:
    (names,) = re.findall(r"^AMAZON=\((.*?)\)", (ROOT / "node/install.sh").read_text(), re.M | re.S)
    return names.split()


def test_every_package_that_is_installed_was_published_under_that_name() -> None:
    assert set(listed()) == set(PUBLISHED)


def test_a_version_says_that_it_is_amazon_linuxs() -> None:
    assert all(re.fullmatch(r"[0-9.]+-[0-9]+\.amzn2023(\.0\.[0-9]+)?", version) for version, _ in PUBLISHED.values())


def test_python_is_the_one_that_the_wheels_are_for() -> None:
    assert "python3.11" in listed()
    assert "--python-version=3.11" in Path(ROOT / "constructs/holdfast/packing.py").read_text()
