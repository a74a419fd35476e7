"""Real Debian module trees and kmod packages for tests and benchmarks: fetched with apt, unpacked once, cached.

In: a flavour such as `6.1-amd64`, or a suite such as `trixie`. Out: a folder, ready to be read.
What apt calls newest today is what is used; no version and no host stands in here. `suites.py` says where it comes
from.

Cache: `trees` in `suites.cache()`. Everything is built beside its place, renamed into it when whole, and guarded by a
lock, so that test runs may overlap.
Needs apt, dpkg-deb and depmod (packages apt, dpkg, kmod), and network for what the cache does not hold.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.suites import QUIET, Unavailable, apt_options, cache, locked, names, run

_SUITES = {"6.1": "bookworm", "6.12": "trixie"}
"""Where Debian keeps a kernel series."""

_SPLIT = re.compile(r"(linux-(?:image|binary|modules|base)-\d\S*) \(= ([^)]+)\)")
"""A package with files of a kernel, as a package that needs it names it; since Debian 14 there are four of them."""


@contextmanager
def may_be_away(flavour: str = "") -> Iterator[None]:
    """Skip the test, by name, where Debian 13's packages are out of this machine's reach; in CI a skip is a failure.

    `flavour`: of a tree. Those of Debian 12 (6.1) must be there, and their Unavailable goes on.
    """
    try:
        yield
    except Unavailable as error:
        if flavour.startswith("6.1-"):
            raise
        import pytest  # the benchmarks fetch trees without it

        pytest.skip(str(error))


@dataclass(frozen=True, slots=True)
class _Package:
    name: str
    version: str
    apt: tuple[str, ...]
    """The apt options under which it is found."""


def debian_tree(flavour: str) -> Path:
    """The unpacked kernel of a flavour: `6.1-amd64`, `6.1-cloud-amd64`, `6.12-amd64`. Indexes are depmod's.

    Returns the root prefix R: modules are in `R/lib/modules/<release(R)>`, also where the package uses /usr/lib.
    Raises Unavailable.
    """
    series, _, kind = flavour.partition("-")
    if series not in _SUITES:
        raise Unavailable(f"{flavour}: no suite known for kernel series {series}")
    return _tree(_SUITES[series], kind, series + ".")


def suite_tree(suite: str, architecture: str = "") -> Path:
    """The unpacked kernel of a suite, like `debian_tree`. `architecture`: as in `suites.py`. Raises Unavailable."""
    return _tree(suite, architecture or "amd64", "", architecture)


def release(root: Path) -> str:
    """The one kernel release under a root that `debian_tree` returned."""
    (found,) = (root / "lib" / "modules").iterdir()
    return found.name


def module_dir(root: Path) -> Path:
    """`R/lib/modules/<release>` of a root that `debian_tree` returned."""
    return root / "lib" / "modules" / release(root)


@functools.cache
def kmod_package(suite: str) -> Path:
    """The kmod of a Debian suite (`bookworm`: 30, `trixie`: 34) with its libkmod2, unpacked: the root prefix.

    Run its programs with `LD_LIBRARY_PATH=<root>/usr/lib/x86_64-linux-gnu` (or what `*-linux-gnu` is there).
    Raises Unavailable.
    """
    programs = newest("kmod", suite, "")
    library = newest("libkmod2", suite, "")

    def fill(root: Path) -> None:
        unpack(programs, root)
        unpack(library, root)
        for link in root.glob("*bin/*"):  # Debian 12's are absolute
            if link.is_symlink() and link.readlink().is_absolute():
                target = os.path.relpath(f"{root}{link.readlink()}", link.parent)
                link.unlink()
                link.symlink_to(target)

    return cached(f"kmod_{programs.version}", fill)


def modprobe_30() -> Path:
    """Debian 12's modprobe, which runs with the libraries of later suites too. Raises Unavailable."""
    return kmod_package("bookworm") / "sbin" / "modprobe"


def kernel_image(root: Path) -> Path:
    """The compressed kernel of a root that `debian_tree` or `suite_tree` returned."""
    found = (root / "boot" / f"vmlinuz-{release(root)}", module_dir(root) / "vmlinuz")
    return next(path for path in found if path.exists())


@functools.cache
def _tree(suite: str, kind: str, prefix: str, architecture: str = "") -> Path:
    meta = newest(f"linux-image-{kind}", suite, prefix, architecture)
    packages = _kernel_packages(meta)

    def fill(root: Path) -> None:
        for package in packages:
            unpack(package, root)
        if not (root / "lib").exists():  # Debian 13 has usr/lib only
            (root / "lib").symlink_to("usr/lib")
        run(["depmod", "-b", str(root), release(root)], {"PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"})

    return cached(f"{packages[0].name}_{packages[0].version}", fill)


def newest(name: str, suite: str, prefix: str, architecture: str = "") -> _Package:
    """The newest version of a suite's package that begins with `prefix`. Raises Unavailable."""
    apt = apt_options(suite, architecture)
    for line in run(["apt-cache", *apt, "madison", name]).splitlines():
        fields = [field.strip() for field in line.split("|")]
        origin = fields[-1] if len(fields) == 3 and fields[-1].endswith(" Packages") else ""
        of_suite = any(f" {each}" in origin for each in names(suite))
        if of_suite and fields[1].startswith(prefix):
            return _Package(name, fields[1], apt)
    raise Unavailable(f"{name} {prefix}* of {suite}: not in its apt sources")


def _kernel_packages(meta: _Package) -> list[_Package]:
    """The packages with the files: what the meta package, and its image, depend on by an exact version."""
    found: list[_Package] = []
    for package in _parts(meta):
        if package.name.startswith("linux-image-"):
            found = [package, *_parts(package)]
    if not found:
        raise Unavailable(f"{meta.name} {meta.version}: depends on no linux-image")
    return found


def needs(name: str, suite: str, pattern: str) -> list[str]:
    """Names that a package depends on and that match `pattern` at their start. Raises Unavailable."""
    text = run(["apt-cache", *apt_options(suite), "show", "--no-all-versions", name])
    found = re.search(r"^Depends: (.*)", text, re.MULTILINE)
    words = re.split(r"[,|] *", found[1]) if found else []
    return [word.split()[0] for word in words if re.match(pattern, word)]


def _parts(package: _Package) -> list[_Package]:
    text = run(["apt-cache", *package.apt, "show", f"{package.name}={package.version}"])
    found = re.search(r"^Depends: (.*)", text, re.MULTILINE)
    return [_Package(name, version, package.apt) for name, version in _SPLIT.findall(found[1] if found else "")]


def unpack(package: _Package, root: Path) -> None:
    with tempfile.TemporaryDirectory(dir=root.parent) as folder:
        run(["apt-get", *QUIET, *package.apt, "download", f"{package.name}={package.version}"], cwd=folder)
        (deb,) = Path(folder).glob("*.deb")
        run(["dpkg-deb", "-x", str(deb), str(root)])


def cached(name: str, fill: Callable[[Path], None]) -> Path:
    """Return the folder `name` of the cache; if missing, `fill` makes it under another name, then it is renamed."""
    place = cache() / "trees" / name.replace(":", "_")
    if place.exists():
        return place
    with locked(place):
        if not place.exists():
            beside = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
            beside.chmod(0o755)
            try:
                fill(beside)
                beside.rename(place)
            finally:
                shutil.rmtree(beside, ignore_errors=True)
    return place
