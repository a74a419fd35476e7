"""Compare what two module trees have for the same devices, and find what a disk needs that a tree or an image lacks."""

from __future__ import annotations

from kmodd.dataclass import dataclass, replace
from kmodd.index.catalog import lookup_or_nothing
from kmodd.names import module_of_path
from kmodd.planning.essentials import ROOTS, is_of_network, needed_interfaces
from kmodd.planning.plan import Skip
from kmodd.planning.resolve import options_of, resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
    from typing import Literal

    from kmodd.index.catalog import Snapshot
    from kmodd.kernel.proc_modules import Loaded
    from kmodd.planning.essentials import Use
    from kmodd.planning.request import Request

    Change = Literal["same", "changed", "lost", "new", "no module"]
else:
    Change = str

_COMES = ("", "builtin")
"""Why a module is skipped that the kernel has all the same; empty: it is loaded."""


def modules_for(
    requests: Sequence[Request],
    snapshot: Snapshot,
    loaded: Loaded,
    present: Callable[[str], bool],
    foreign: Callable[[str], str] = lambda _: "",
) -> dict[str, str]:
    """Return the modules that match a device at boot: name → why it does not come; `builtin`, or empty: it comes."""
    options = replace(options_of("coldplug"), ignore_loaded=True)
    found: dict[str, str] = {}
    for request in requests:
        for goal in resolve(request, snapshot, loaded, options, present, foreign=foreign).goals:
            for entry in goal.entries:
                why = entry.reason if isinstance(entry, Skip) else ""
                if entry.module == goal.module and why != "no_match":
                    found.setdefault(entry.module, why)
    return found


@dataclass(frozen=True, slots=True)
class DeviceChange:
    """The modules of a device in two trees, each with why it does not come, as `modules_for` returns them."""

    driver: str
    """Module of the driver that is bound now; empty: none."""
    now: Mapping[str, str]
    then: Mapping[str, str]

    @property
    def gone(self) -> frozenset[str]:
        """The modules that come now and not then."""
        return _coming(self.now) - _coming(self.then)

    @property
    def added(self) -> frozenset[str]:
        """The modules that come then and not now."""
        return _coming(self.then) - _coming(self.now)

    @property
    def state(self) -> Change:
        """What becomes of the device.

        lost: it would have no driver, as no module comes, or that of its driver does not, and no other in its place.
        """
        if not _coming(self.then):
            return "lost" if _coming(self.now) else "no module"
        if not _coming(self.now):
            return "new"
        if self.driver in self.gone and not self.added:
            return "lost"
        return "changed" if self.gone or self.added else "same"


def _coming(modules: Mapping[str, str]) -> frozenset[str]:
    return frozenset(module for module, why in modules.items() if why in _COMES)


def replacements(changes: Iterable[DeviceChange]) -> dict[str, frozenset[str]]:
    """Return what comes then for the devices of each driver that is gone: module → modules."""
    found: dict[str, frozenset[str]] = {}
    for change in changes:
        if change.driver in change.gone:
            found[change.driver] = found.get(change.driver, frozenset()) | _coming(change.then)
    return found


@dataclass(frozen=True, slots=True)
class Lack:
    """Something in use that hangs on modules which a tree or an image lacks."""

    use: Use
    modules: tuple[str, ...]


class Needs:
    """What is in use now, looked up in another tree."""

    def __init__(self, uses: Sequence[Use], then: Snapshot, replaced: Mapping[str, frozenset[str]]) -> None:
        """Take what is in use, the other tree, and the modules that come there in place of those of drivers."""
        self._uses, self._then, self._replaced = uses, then, replaced

    def not_in_tree(self, now: Snapshot | None, loaded: Loaded) -> list[Lack]:
        """Return what hangs on modules that the other tree lacks.

        now: the tree of the running kernel; None: there is none. A name that neither that nor the list of loaded
        modules has is part of the kernel image.
        """
        return list(_lacks((use, self._gone(use, now, loaded)) for use in self._uses))

    def _gone(self, use: Use, now: Snapshot | None, loaded: Loaded) -> Iterator[str]:
        for name in sorted(use.modules):
            is_module = loaded.state(name) or (now is not None and now.catalog.has(name))
            if is_module and not self._places(name):
                yield name
        for alias in use.aliases:
            before = lookup_or_nothing(alias, now) if now is not None else ()
            if (
                before
                and not lookup_or_nothing(alias, self._then)
                and not any(self._places(hit.module) for hit in before)
            ):
                yield before[0].module

    def not_in_image(self, image: Container[str]) -> list[Lack]:
        """Return what the machine does not boot without, with the modules that an image lacks.

        These are the file systems of ROOTS, and if one is on the network, the interfaces, of which one suffices. The
        image sets up no bridges, bonds and the like, so that these do not count.
        """
        roots = [use for use in self._uses if use.kind == "mount" and use.name in ROOTS]
        found = list(_lacks((use, self._missing(use, image)) for use in roots))
        if any(map(is_of_network, roots)):
            ways = [replace(use, aliases=()) for use in needed_interfaces(self._uses)]
            lacking = list(_lacks((use, self._missing(use, image)) for use in ways))
            found += lacking if len(lacking) == len(ways) else []
        return found

    def _missing(self, use: Use, image: Container[str]) -> Iterator[str]:
        """Yield what an image lacks of a use; of several modules that serve, one suffices."""
        wanted = [self._places(name) for name in sorted(use.modules)]
        wanted += [tuple(hit.module for hit in lookup_or_nothing(alias, self._then)) for alias in use.aliases]
        for names in wanted:
            lacks = [self._lacking(name, image) for name in names]
            if lacks and all(lacks):
                yield from min(lacks, key=len)

    def _lacking(self, name: str, image: Container[str]) -> list[str]:
        """Return what an image lacks of a module, its dependencies, and what a softdep has precede one of these.

        update-initramfs and dracut put these in, and of a softdep all modules that it stands for; one of them suffices
        here. A softdep without a module in the tree asks for nothing, as for modprobe.
        """
        found: dict[str, None] = {}
        waiting: list[tuple[str, ...]] = [(name,)]
        walked = set()
        for names in waiting:  # which grows
            if any(map(self._then.catalog.is_builtin, names)):
                continue
            held = [each for each in names if each in image]
            chosen = next((each for each in held if all(dep in image for dep in self._deps(each))), (held or names)[0])
            if not held:
                found[chosen] = None
            for each in (chosen, *self._deps(chosen)):
                if each not in walked:
                    walked.add(each)
                    waiting += [(each,), *self._before(each)]
        return list(found)

    def _deps(self, name: str) -> tuple[str, ...]:
        line = self._then.catalog.dep(name)
        return tuple(map(module_of_path, line.deps)) if line else ()

    def _before(self, name: str) -> Iterator[tuple[str, ...]]:
        """Yield the modules that each word of a module's softdeps, behind `pre:`, stands for."""
        lines = self._then.lines.softdeps(name)
        if not self._then.config.extensions.softdeps_add_up:
            del lines[1:]
        for word in (word for line in lines for word in line.pre):
            if hits := lookup_or_nothing(word, self._then):
                yield tuple(hit.module for hit in hits)

    def _places(self, name: str) -> tuple[str, ...]:
        """Return the modules of the other tree that stand for one of this; none if it is not known there."""
        if self._then.catalog.has(name):
            return (name,)
        return tuple(sorted(self._replaced.get(name, ())))


def _lacks(found: Iterable[tuple[Use, Iterable[str]]]) -> Iterator[Lack]:
    for use, modules in found:
        if names := tuple(dict.fromkeys(modules)):
            yield Lack(use, names)
