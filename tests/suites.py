"""Debian suites that guests, chroots and trees are made of, and apt for each of them.

The machine's own suite comes from its own apt sources; another suite or architecture from the mirror that these name
for the machine's suite, with an apt state of its own below `cache()`. The machine's apt is never changed.
`architecture`: Debian's name for it; empty: the machine's own.
"""

from __future__ import annotations

import fcntl
import functools
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

SUITES: Final = ("bookworm", "trixie", "testing")

QUIET: Final = ("-qq", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3")

LENIENT: Final = 'Acquire::Check-Valid-Until "false"'
"""For mirrors that are copied at times: the Release file of testing is valid for a week."""

_DEBIAN: Final = ("Created-By: Packages", "Origin: Debian")
_KEYRINGS: Final = tuple(Path(f"/usr/share/keyrings/debian-archive-keyring.{kind}") for kind in ("pgp", "gpg"))


class Unavailable(Exception):
    """A package is unavailable; the text has its name and the reason. Tests of an optional tree are skipped."""


@functools.cache
def own() -> str:
    """The machine's suite; whatever is younger than the stable releases of SUITES counts as testing."""
    codename = _codename()
    return codename if codename in SUITES else "testing"


@functools.cache
def own_architecture() -> str:
    """Debian's name for the machine's architecture. Raises Unavailable without dpkg."""
    return run(["dpkg", "--print-architecture"]).strip()


def names(suite: str) -> set[str]:
    """What sources may call a suite: the machine's own may be listed by its codename."""
    return {suite, _codename()} if suite == own() else {suite}


def chosen() -> str:
    """The suite whose guests are used: `$SUITE`, else the machine's own. Raises Unavailable for an unknown one."""
    suite = os.environ.get("SUITE") or own()
    if suite not in SUITES:
        raise Unavailable(f"SUITE={suite}: expected one of {', '.join(SUITES)}")
    return suite


@functools.cache
def apt_options(suite: str, architecture: str = "") -> tuple[str, ...]:
    """Options for an apt that knows `suite`: none for the machine's own. Fetches the lists. Raises Unavailable."""
    is_own = architecture in ("", own_architecture())
    if suite == own() and is_own:
        return ()
    state = cache() / "trees" / (f"apt-{suite}" if is_own else f"apt-{suite}-{architecture}")
    with locked(state):
        (state / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        (state / "sources.list").write_text(_line(suite))
        options: tuple[str, ...] = (
            "-o", f"Dir::State::lists={state}/lists", "-o", f"Dir::Etc::sourcelist={state}/sources.list",
            "-o", "Dir::Etc::sourceparts=-", "-o", f"Dir::Cache={state}", "-o", "Acquire::Languages=none",
            "-o", f"{LENIENT.split()[0]}=false",
        )  # fmt: skip
        if not is_own:
            options += ("-o", f"APT::Architecture={architecture}", "-o", f"APT::Architectures={architecture}")
        run(["apt-get", *QUIET, *options, "update"])
    return options


def sources(suite: str, architecture: str = "") -> str:
    """The suite's sources for mmdebstrap, a `deb` line each; sources of other vendors are left out.

    Raises Unavailable.
    """
    if suite != own() or architecture not in ("", own_architecture()):
        return _line(suite)
    line = "deb $(REPO_URI) $(RELEASE) $(COMPONENT)"
    lines = sorted({*run(["apt-get", "indextargets", "--format", line, *_DEBIAN]).splitlines()})
    if not lines:
        raise Unavailable("apt has no list of Debian packages: apt-get update")
    return "".join(f"{line}\n" for line in lines)


def versions(suite: str, packages: Sequence[str], architecture: str = "") -> dict[str, str]:
    """Ask apt once: package → version. Raises Unavailable."""
    text = run(["apt-cache", *apt_options(suite, architecture), "show", "--no-all-versions", *packages])
    found = dict(re.findall(r"^Package: (\S+)\n(?:.+\n)*?Version: (\S+)", text, re.MULTILINE))
    missing = sorted(set(packages) - set(found))
    if missing:
        raise Unavailable(f"{suite} has no package {', '.join(missing)}")
    return found


def bootstrap(
    suite: str, root: Path, packages: Sequence[str], architecture: str = "", variant: str = "minbase"
) -> tuple[list[str], str]:
    """The words of an mmdebstrap that makes `root` of a suite's `variant` and `packages`, and its standard input.

    Another architecture's programs must run here (`emulation.py`). Raises Unavailable.
    """
    options = ["--quiet", "--aptopt=APT::Install-Recommends false", f"--aptopt={LENIENT}"]
    words = ["mmdebstrap", f"--variant={variant}", f"--include={','.join(packages)}", *options]
    words += [f"--architectures={architecture}"] if architecture else []
    return [*words, _codename() if suite == own() else suite, str(root), "-"], sources(suite, architecture)


def cache() -> Path:
    """The folder of everything that is fetched or built: `$KMODD_CACHE`, else `.cache` in the repository."""
    return Path(os.environ.get("KMODD_CACHE") or Path(__file__).resolve().parent.parent / ".cache").absolute()


@contextmanager
def locked(place: Path) -> Iterator[None]:
    """Hold the lock of a place in the cache."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(place.with_name(f".{place.name}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run(command: Sequence[str], env: dict[str, str] | None = None, cwd: str | None = None) -> str:
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


def _line(suite: str) -> str:
    return f"deb {_signed()}{_mirror()} {_codename() if suite == own() else suite} main\n"


def _codename() -> str:
    lines = [line.partition("=") for line in Path("/etc/os-release").read_text().splitlines()]
    return next((value for key, _, value in lines if key == "VERSION_CODENAME"), "")


@functools.cache
def _mirror() -> str:
    form = "$(REPO_URI)|$(CODENAME)|$(COMPONENT)"
    targets = run(["apt-get", "indextargets", "--format", form, "Created-By: Packages"]).splitlines()
    codename = _codename()
    mirror = next((uri for uri, *rest in (target.split("|") for target in targets) if rest == [codename, "main"]), "")
    if not mirror:
        raise Unavailable(f"the machine's apt sources have no {codename or 'Debian'} main: no mirror for other suites")
    return mirror


def _signed() -> str:
    """Name the keyring: Debian's testing trusts no key for sources that name none."""
    keyring = next((path for path in _KEYRINGS if path.exists()), None)
    return f"[signed-by={keyring}] " if keyring else ""
