"""`kmodd.dataclass` beside the standard library's, for every class of kmodd that is made by it.

All of kmodd is imported a second time with `dataclasses` in its place; each class must then be the same to its
users: fields, defaults, construction and its errors, equality, hash, repr, replacing, freezing, matching by position.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

import kmodd
from kmodd import dataclass as ours

LEFT_OUT = ("kmodd.cli.__main__",)
"""Modules that have an effect when imported under their name."""


def classes_by_name() -> dict[str, type[Any]]:
    """Every class of kmodd that has fields, by module and name."""
    found = {}
    for module in pkgutil.walk_packages(kmodd.__path__, "kmodd."):
        if module.name not in LEFT_OUT:
            for value in vars(importlib.import_module(module.name)).values():
                if not isinstance(value, type) or value.__module__ != module.name or issubclass(value, tuple):
                    continue
                if "__match_args__" in vars(value):
                    found[f"{module.name}.{value.__qualname__}"] = value
    return found


def imported_anew(library: ModuleType | None = None) -> dict[str, type[Any]]:
    """The same of a second kmodd, without an instance yet; made by `library`, where one is given."""
    kept = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "kmodd"}
    for name in kept:
        del sys.modules[name]
    if library:
        sys.modules["kmodd.dataclass"] = library
    try:
        return classes_by_name()
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "kmodd"]:
            del sys.modules[name]
        sys.modules.update(kept)
        for name, module in kept.items():  # a package has its modules as attributes
            package, _, last = name.rpartition(".")
            if package:
                setattr(kept[package], last, module)


OURS = imported_anew()
THEIRS = imported_anew(dataclasses)


def said(do: Callable[[], object]) -> object:
    """Return value, or text of the error."""
    try:
        return do()
    except (TypeError, AttributeError) as error:
        kind = AttributeError if isinstance(error, AttributeError) else TypeError
        return kind, str(error)


def values(cls: type[Any], first: int = 0) -> list[Any]:
    """A value for each field; `repr` and hash accept any type."""
    return [(name, first) for name in cls.__match_args__]


def test_every_class_is_compared() -> None:
    assert len(OURS) > 80
    assert OURS.keys() == THEIRS.keys()
    assert all(dataclasses.is_dataclass(cls) for cls in THEIRS.values())
    assert not any(dataclasses.is_dataclass(cls) for cls in OURS.values())


@pytest.mark.parametrize("name", sorted(OURS))
def test_a_class_equals_the_standard_librarys(name: str) -> None:
    one, other = OURS[name], THEIRS[name]
    assert one.__match_args__ == other.__match_args__
    assert one.__slots__ == other.__slots__
    assert one.__doc__ in (None, other.__doc__)  # theirs make one up
    assert one.__init__.__code__.co_varnames[1:] != one.__match_args__
    assert behaviour(one) == behaviour(other)
    for _ in range(20):  # then `__init__` is a compiled one
        one(*values(one))
    assert one.__init__.__code__.co_varnames[1:] == one.__match_args__
    assert behaviour(one) == behaviour(other)


def behaviour(cls: type[Any]) -> list[Any]:
    """Properties and behaviour of its instances."""
    names = cls.__match_args__
    replace: Any = dataclasses.replace if dataclasses.is_dataclass(cls) else ours.replace
    full, again, changed = cls(*values(cls)), cls(**dict(zip(names, values(cls), strict=True))), cls(*values(cls, 1))
    found = [
        repr(full),
        [getattr(full, name) for name in names],
        said(lambda: hash(full) == hash(again)),
        full == again, full == changed, full == 1, full != changed,
        said(lambda: cls(*range(len(names) + 1))),
        said(lambda: cls(*values(cls), strange=1)),
        str(said(lambda: repr(cls()))),
    ]  # fmt: skip
    if names:
        found += [repr(replace(full, **{names[-1]: 5})), full == replace(full), said(lambda: replace(full, strange=1))]
        found += [said(lambda: setattr(full, names[0], 7)), said(lambda: delattr(full, names[0]))]
        found += [hasattr(full, names[0])]
    return found


@pytest.mark.parametrize("arguments", [(), (1,), (1, 2, 3, 4)])
@pytest.mark.parametrize("keywords", [{}, {"a": 1}, {"c": 5}, {"d": 1}])
@pytest.mark.parametrize("library", [ours, dataclasses], ids=["ours", "theirs"])
def test_arguments(library: ModuleType, arguments: tuple[int, ...], keywords: dict[str, int]) -> None:
    """Errors are equal, compiled or not: missing, repeated, unknown and surplus arguments."""

    @library.dataclass(frozen=True, slots=True)
    class Thing:
        a: int
        b: int
        c: int = 3
        d: list[int] = library.field(default_factory=list)

    @dataclasses.dataclass(frozen=True, slots=True)
    class Standard:
        a: int
        b: int
        c: int = 3
        d: list[int] = dataclasses.field(default_factory=list)

    def words(cls: Callable[..., object]) -> str:
        return str(said(lambda: cls(*arguments, **keywords))).replace("test_arguments.<locals>.", "")

    expected = words(Standard).replace("Standard", "Thing")
    for _ in range(20):
        assert words(Thing) == expected


def test_each_instance_has_a_default_of_its_own() -> None:
    @ours.dataclass(slots=True)
    class Thing:
        items: list[int] = ours.field(default_factory=list)

    things = [Thing() for _ in range(20)]
    for number, thing in enumerate(things):
        thing.items.append(number)
    assert [thing.items for thing in things] == [[number] for number in range(20)]


def test_class_without_slots_is_refused() -> None:
    with pytest.raises(TypeError, match="expected slots=True"):
        ours.dataclass(slots=False)
