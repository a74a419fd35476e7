"""Read from this machine what `kmodd deny` says of a module."""

from __future__ import annotations

import subprocess

from kmodd.cli.similar import hint
from kmodd.dataclass import dataclass
from kmodd.host.initrd_images import images_with
from kmodd.host.journalctl import Query, journal_records
from kmodd.host.kernel_facts import read_facts
from kmodd.host.regular_files import read_file
from kmodd.host.tree import Tree
from kmodd.planning.history import entries_of
from kmodd.planning.module_truth import (
    Truth,
    askers_of,
    bringers_of,
    initcalls_of,
    loaded_module,
    overrides_of,
    why_kernel_refuses,
)
from kmodd.text import decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from kmodd.index.catalog import Snapshot

_JOURNAL_LIMIT = 10.0
"""Seconds to wait for journalctl, which reads a large journal of many files slowly."""


@dataclass(frozen=True, slots=True)
class Askers:
    """Who had the kernel load some modules, by the journal."""

    by_module: dict[str, tuple[tuple[str, int], ...]]
    """Module → units or users, each with their number."""
    unknown: str = ""
    """Why it is not known; empty: it is."""


def truth_of(module: str, tree: Tree, snapshot: Snapshot, asked: Askers) -> Truth:
    """Return the facts about a module; the initrds are those of this machine, not of another root."""
    aliases, users, softdeps = bringers_of(module, snapshot)
    is_builtin = snapshot.catalog.is_builtin(module)
    symbols = decode(read_file(f"{tree.root}/proc/kallsyms") or b"").splitlines() if is_builtin else []
    images = images_with(module, tree.release) if not tree.root else None
    live, has_file = loaded_module(tree.loaded(), module), snapshot.catalog.dep(module) is not None
    return Truth(
        module,
        live,
        is_builtin,
        has_file,
        initcalls_of(symbols, module) if is_builtin else None,
        aliases,
        users,
        softdeps,
        overrides_of(module, snapshot),
        asked.by_module.get(module, ()),
        asked.unknown,
        why_kernel_refuses(read_facts(tree.root)),
        images.carrying if images and images.has_images else None,
        f"there is no initrd of {tree.release} in /boot or /efi" if images else "images are read of this machine alone",
        images.unread if images else (),
        "" if live or is_builtin or has_file else hint(module, map(str, snapshot.catalog.names())),
    )


def read_askers(modules: Sequence[str], root: str, limit: float = _JOURNAL_LIMIT) -> Askers:
    """Return who had the kernel load modules; the journal is read once, and is not that of another root.

    limit: seconds for journalctl.
    """
    if root:
        return Askers({}, "the journal is read of this machine alone")
    try:
        with journal_records(Query(matches=tuple(f"KMODD_MODULES={module}" for module in modules)), limit) as lines:
            entries = tuple(entries_of(lines))
    except TimeoutError:
        return Askers({}, f"the history was not read within {limit:g}s")
    except (OSError, subprocess.CalledProcessError):
        return Askers({}, "the journal cannot be read")
    return Askers({module: askers_of(module, entries) for module in modules})
