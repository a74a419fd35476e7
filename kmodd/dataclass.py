"""`dataclass`, `field` and `replace` as in the standard library, as far as kmodd uses them, made when they are needed.

The standard ones import `inspect`, and compile five methods for each class that is defined, whether anybody makes an
instance or not: together two thirds of the time of a `modprobe -D`. Here a class costs its slots, and its `__init__`
is compiled when there are so many instances that it pays. For mypy these *are* the standard ones.

Left out: what nobody uses. All classes have slots; fields have no `init=False`, `kw_only` and the like; there is no
`__post_init__`, no `order`, no `__dataclass_fields__`. A frozen instance raises AttributeError, of which the
standard FrozenInstanceError is a kind.
"""

from __future__ import annotations

from operator import attrgetter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from dataclasses import dataclass as dataclass
    from dataclasses import field as field
    from dataclasses import replace as replace
    from typing import Any, NoReturn, TypeVar

    T = TypeVar("T")

_REQUIRED = object()
"""Stands where a field has no default, and where a parameter that gets a made one was not given."""
_FEW = 100
"""So many instances are filled field by field: 0.5 µs more for each, where to compile an `__init__` takes 60."""


class _Factory:
    """What stands in a class body for a default that is made anew for each instance."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[[], object]) -> None:
        self.make = make


def _dataclass(*, slots: bool, frozen: bool = False, eq: bool = True) -> Callable[[type], type]:
    """The decorator. `slots` is there to be said, as to the standard one; without them it is a TypeError."""
    if not slots:
        raise TypeError("only classes with slots are made here: expected slots=True")
    return lambda cls: _made(cls, frozen, eq)


def _field(*, default_factory: Callable[[], object]) -> _Factory:
    """A default that is made anew for each instance."""
    return _Factory(default_factory)


def _replace(instance: T, /, **changes: object) -> T:
    """A copy with some fields changed. Raises TypeError for what is no field."""
    cls: Any = instance.__class__
    return cls(**{name: getattr(instance, name) for name in cls.__match_args__} | changes)  # type: ignore[no-any-return]


if not TYPE_CHECKING:
    dataclass, field, replace = _dataclass, _field, _replace


def _made(cls: type, frozen: bool, eq: bool) -> type:
    """The class again, with slots, which a class cannot be given later, and with its methods."""
    body = dict(cls.__dict__)
    for name in ("__dict__", "__weakref__"):  # of the class without slots
        body.pop(name, None)
    fields: dict[str, object] = {}
    for base in reversed(cls.__mro__):
        fields |= base.__dict__.get("_defaults", {})
    inherited = set(fields)
    for name in body.get("__annotations__", ()):
        fields[name] = body.pop(name, _REQUIRED)
    body["__slots__"] = tuple(name for name in fields if name not in inherited)
    body["__match_args__"] = tuple(fields)
    body["_defaults"] = fields
    body.setdefault("__repr__", _repr)
    if eq:
        body["__eq__"], body["__hash__"] = _comparison(tuple(fields), frozen)
    if frozen:
        body["__setattr__"], body["__delattr__"] = _refuse_value, _refuse_deletion

    instances, needed = 0, 0
    defaults = tuple(fields.values())
    setters: list[Callable[[object, object], None]] = []

    def __init__(self: object, *args: object, **kwargs: object) -> None:
        nonlocal instances, needed
        if not instances:
            needed = _needed(defaults)
            setters[:] = [getattr(made, name).__set__ for name in fields]  # in one go: there may be threads
        instances += 1
        if instances <= _FEW and not kwargs and needed <= len(args) <= len(setters):
            for set_value, value in zip(setters, args + defaults[len(args) :], strict=True):
                set_value(self, value)
        elif instances > _FEW or not _fill(self, fields, args, kwargs):
            init = made.__init__ = _init(made, fields, frozen)  # type: ignore[misc]
            init(self, *args, **kwargs)

    body["__init__"] = __init__
    made: type = type(cls)(cls.__name__, cls.__bases__, body)
    return made


def _needed(defaults: tuple[object, ...]) -> int:
    """How many fields come up to the last one that has no default, or one that is made."""
    count = len(defaults)
    while count and defaults[count - 1] is not _REQUIRED and not isinstance(defaults[count - 1], _Factory):
        count -= 1
    return count


def _comparison(names: tuple[str, ...], frozen: bool) -> tuple[Callable[..., bool], Callable[..., int] | None]:
    """`__eq__` and `__hash__` by all fields; what may change has no hash."""
    values: Callable[[object], object] = attrgetter(*names) if names else lambda _: ()

    def __eq__(self: object, other: object) -> bool:
        return values(self) == values(other) if other.__class__ is self.__class__ else NotImplemented

    def __hash__(self: object) -> int:
        return hash(values(self))

    return __eq__, __hash__ if frozen else None


def _fill(instance: object, fields: dict[str, object], args: tuple[object, ...], kwargs: dict[str, object]) -> bool:
    """Do what `__init__` does. False where the arguments are wrong: then that itself shall say so."""
    given = dict(zip(fields, args, strict=False)) | kwargs
    if len(given) != len(args) + len(kwargs) or not given.keys() <= fields.keys():
        return False
    for name, default in fields.items():
        value = given.get(name, default)
        if value is _REQUIRED:
            return False
        object.__setattr__(instance, name, value.make() if isinstance(value, _Factory) else value)
    return True


def _init(cls: type, fields: dict[str, object], frozen: bool) -> Callable[..., None]:
    """The function `__init__`, with each field as a parameter. A frozen one is filled by its slots themselves."""
    known: dict[str, Any] = {"_REQUIRED": _REQUIRED}
    heads, lines = ["self"], ["pass"]
    for name, default in fields.items():
        known[f"_set_{name}"] = getattr(cls, name).__set__
        value = head = name
        if isinstance(default, _Factory):
            known[f"_make_{name}"] = default.make
            head, value = f"{name}=_REQUIRED", f"_make_{name}() if {name} is _REQUIRED else {name}"
        elif default is not _REQUIRED:
            known[f"_default_{name}"] = default
            head = f"{name}=_default_{name}"
        heads.append(head)
        lines.append(f"_set_{name}(self, {value})" if frozen else f"self.{name} = {value}")
    exec(f"def __init__({', '.join(heads)}):\n " + "\n ".join(lines), known)  # noqa: S102 (names of fields alone)
    made: Callable[..., None] = known["__init__"]
    made.__qualname__ = f"{cls.__qualname__}.__init__"
    made.__module__ = cls.__module__
    return made


def _repr(self: Any) -> str:
    shown = ", ".join([f"{name}={getattr(self, name)!r}" for name in self.__match_args__])
    return f"{self.__class__.__qualname__}({shown})"


def _refuse_value(_: object, name: str, __: object) -> NoReturn:
    raise AttributeError(f"cannot assign to field {name!r}")


def _refuse_deletion(_: object, name: str) -> NoReturn:
    raise AttributeError(f"cannot delete field {name!r}")
