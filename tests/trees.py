"""Real Debian module trees and kmod packages for tests and benchmarks: fetched with apt, unpacked once, cached.

In: a flavour such as `6.1-amd64`, or a suite such as `trixie`. Out: a folder, ready to be read.
What apt calls newest today is what is used; no version and no host stands in here. A suite that the machine's own
sources do not list is asked for at the mirror that they name for the machine's own suite, with an apt state of its own.

Cache: `$KMODD_CACHE`, else `.cache/trees` in the repository. Everything is built beside its place, renamed into it when
whole, and guarded by a lock, so that test runs may overlap.
Needs apt, dpkg-deb and depmod (packages apt, dpkg, kmod), and network for what the cache does not hold.
"""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_SUITES = {"6.1": "bookworm", "6.12": "trixie"}
"""Where Debian keeps a kernel series, as far as the machine's own sources do not have it."""

_CHATTER = ["-qq", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3"]


class Unavailable(Exception):
    """A package is unavailable; the text has its name and the reason. Tests of an optional tree are skipped."""


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
    """The unpacked `linux-image` of a flavour: `6.1-amd64`, `6.1-cloud-amd64`, `6.12-amd64`. Indexes are depmod's.

    Returns the root prefix R: modules are in `R/lib/modules/<release(R)>`, also where the package uses /usr/lib.
    Raises Unavailable.
    """
    return _tree(flavour)


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

    return cached(f"kmod_{programs.version}", fill)


@functools.cache
def _tree(flavour: str) -> Path:
    series, _, kind = flavour.partition("-")
    if series not in _SUITES:
        raise Unavailable(f"{flavour}: no suite known for kernel series {series}")
    meta = newest(f"linux-image-{kind}", _SUITES[series], series + ".")
    image = _image_of(meta)

    def fill(root: Path) -> None:
        unpack(image, root)
        if not (root / "lib").exists():  # trixie ships usr/lib only
            (root / "lib").symlink_to("usr/lib")
        run(["depmod", "-b", str(root), release(root)], {"PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"})

    return cached(f"{image.name}_{image.version}", fill)


def newest(name: str, suite: str, prefix: str) -> _Package:
    """The newest version of a package that begins with `prefix`: out of the machine's sources, else of `suite`."""
    for options in (_machine_apt, _suite_apt):
        apt = options(suite)
        for line in run(["apt-cache", *apt, "madison", name]).splitlines():
            fields = [field.strip() for field in line.split("|")]
            of_suite = len(fields) == 3 and f" {suite}" in fields[2] and fields[2].endswith(" Packages")
            if of_suite and fields[1].startswith(prefix):
                return _Package(name, fields[1], apt)
    raise Unavailable(f"{name} {prefix}* of {suite}: not in the machine's apt sources, nor at their mirror")


def _image_of(meta: _Package) -> _Package:
    """The package with the files: what the meta package depends on by an exact version."""
    for line in run(["apt-cache", *meta.apt, "show", f"{meta.name}={meta.version}"]).splitlines():
        if line.startswith("Depends: linux-image-"):
            name, _, wanted = line.removeprefix("Depends: ").split(",")[0].partition(" (= ")
            return _Package(name, wanted.rstrip(")") or meta.version, meta.apt)
    raise Unavailable(f"{meta.name} {meta.version}: depends on no linux-image")


def _machine_apt(suite: str) -> tuple[str, ...]:
    del suite
    return ()


@functools.cache
def _suite_apt(suite: str) -> tuple[str, ...]:
    """Options for an apt that knows `suite` alone, at the mirror of the machine's own. The machine's is not changed."""
    release_lines = [line.partition("=") for line in Path("/etc/os-release").read_text().splitlines()]
    codename = next((value for key, _, value in release_lines if key == "VERSION_CODENAME"), "")
    form = "$(REPO_URI)|$(CODENAME)|$(COMPONENT)"
    targets = run(["apt-get", "indextargets", "--format", form, "Created-By: Packages"]).splitlines()
    mirror = next((uri for uri, *rest in (target.split("|") for target in targets) if rest == [codename, "main"]), "")
    if not mirror:
        raise Unavailable(f"{suite}: the machine's apt sources have no {codename or 'Debian'} main: no mirror")

    state = _cache() / f"apt-{suite}"
    with _locked(state):
        (state / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        (state / "sources.list").write_text(f"deb {mirror} {suite} main\n")
        options = (
            "-o", f"Dir::State::lists={state}/lists", "-o", f"Dir::Etc::sourcelist={state}/sources.list",
            "-o", "Dir::Etc::sourceparts=-", "-o", f"Dir::Cache={state}", "-o", "Acquire::Languages=none",
        )  # fmt: skip
        run(["apt-get", *_CHATTER, *options, "update"])
    return options


def unpack(package: _Package, root: Path) -> None:
    with tempfile.TemporaryDirectory(dir=root.parent) as folder:
        run(["apt-get", *_CHATTER, *package.apt, "download", f"{package.name}={package.version}"], cwd=folder)
        (deb,) = Path(folder).glob("*.deb")
        run(["dpkg-deb", "-x", str(deb), str(root)])


def _cache() -> Path:
    folder = os.environ.get("KMODD_CACHE", "")
    path = Path(folder) if folder else Path(__file__).resolve().parent.parent / ".cache" / "trees"
    path.mkdir(parents=True, exist_ok=True)
    return path


def cached(name: str, fill: Callable[[Path], None]) -> Path:
    """Return the folder `name` of the cache; if missing, `fill` makes it under another name, then it is renamed."""
    place = _cache() / name.replace(":", "_")
    if place.exists():
        return place
    with _locked(place):
        if not place.exists():
            beside = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
            beside.chmod(0o755)
            try:
                fill(beside)
                beside.rename(place)
            finally:
                shutil.rmtree(beside, ignore_errors=True)
    return place


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    with open(place.with_name(f".{place.name}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run(command: list[str], env: dict[str, str] | None = None, cwd: str | None = None) -> str:
    """Return the command's output. Raises Unavailable with its last line if it fails or is not installed."""
    try:
        environment = {**os.environ, "LC_ALL": "C", **(env or {})}
        done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise Unavailable(f"{command[0]} is not installed") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise Unavailable(f"{command[0]} {command[-1]}: {said[-1]}")
    return done.stdout
