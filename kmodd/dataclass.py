"""Replacements for `dataclass`, `field` and `replace` of the standard library that compile no method at import.

The standard module imports `inspect` and compiles five methods for each class, also for one without instances: together
two thirds of the time of `modprobe -D`. Here a class gets its slots when it is defined, and an `__init__` later. mypy
sees the standard functions.

`__init__` has two implementations, for tools and for the daemon. A tool makes a few instances of each class: with
`__init__` compiled at the first one, `modprobe -D e1000e` takes 14.9 ms of CPU time in place of 14.2, of which seven
classes with keywords or default factories make 0.8 ms. The daemon makes thousands of instances: a compiled
`__init__` saves 0.5 µs for each. So the first instances are filled by assignment, and a class with more of them gets a
compiled `__init__`.

Only what kmodd uses is supported. All classes have slots; fields have no `init=False` or `kw_only`; there is no
`__post_init__`, `order` or `__dataclass_fields__`. Assignment to a frozen instance raises AttributeError, the base
class of the standard FrozenInstanceError.
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
"""Marks a field without a default, and an absent argument for a field with a default factory."""
_UNCOMPILED_INSTANCES = 100
"""Instances of a class before its `__init__` is compiled: 60 µs once, where an instance filled by slots takes 0.5 µs
more."""


class _Factory:
    """A default factory, as the value of a field in a class body."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[[], object]) -> None:
        self.make = make


def _dataclass(*, slots: bool, frozen: bool = False, eq: bool = True) -> Callable[[type], type]:
    """Return the class decorator, as dataclasses.dataclass does. Raises TypeError unless `slots` is true."""
    if not slots:
        raise TypeError("expected slots=True: classes without slots are not supported")
    return lambda cls: _with_methods(cls, frozen, eq)


def _field(*, default_factory: Callable[[], object]) -> _Factory:
    """Return a field default that calls `default_factory` for each instance, as dataclasses.field does."""
    return _Factory(default_factory)


def _replace(instance: T, /, **changes: object) -> T:
    """Return a copy of `instance` with some fields changed. Raises TypeError for an unknown field."""
    cls: Any = instance.__class__
    return cls(**{name: getattr(instance, name) for name in cls.__match_args__} | changes)  # type: ignore[no-any-return]


if not TYPE_CHECKING:
    dataclass, field, replace = _dataclass, _field, _replace


def _with_methods(cls: type, frozen: bool, eq: bool) -> type:
    """Return a copy of `cls` with slots and methods; slots cannot be added to an existing class."""
    body = dict(cls.__dict__)
    for name in ("__dict__", "__weakref__"):  # descriptors of the class without slots
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
        body["__setattr__"], body["__delattr__"] = _frozen_setattr, _frozen_delattr

    instances, required = 0, 0
    defaults = tuple(fields.values())
    setters: list[Callable[[object, object], None]] = []

    def __init__(self: object, *args: object, **kwargs: object) -> None:
        nonlocal instances, required
        if not instances:
            required = _required(defaults)
            setters[:] = [getattr(slotted, name).__set__ for name in fields]  # one assignment: there may be threads
        instances += 1
        if instances <= _UNCOMPILED_INSTANCES and not kwargs and required <= len(args) <= len(setters):
            for set_value, value in zip(setters, args + defaults[len(args) :], strict=True):
                set_value(self, value)
        elif instances > _UNCOMPILED_INSTANCES or not _assign(self, fields, args, kwargs):
            init = slotted.__init__ = _compiled_init(slotted, fields, frozen)  # type: ignore[misc]
            init(self, *args, **kwargs)  # also raises the TypeError for wrong arguments

    body["__init__"] = __init__
    slotted: type = type(cls)(cls.__name__, cls.__bases__, body)
    return slotted


def _required(defaults: tuple[object, ...]) -> int:
    """Return the number of leading fields up to the last one without a default or with a default factory."""
    count = len(defaults)
    while count and defaults[count - 1] is not _REQUIRED and not isinstance(defaults[count - 1], _Factory):
        count -= 1
    return count


def _comparison(names: tuple[str, ...], frozen: bool) -> tuple[Callable[..., bool], Callable[..., int] | None]:
    """Return `__eq__` and `__hash__` over all fields; the hash is None unless the class is frozen."""
    values: Callable[[object], object] = attrgetter(*names) if names else lambda _: ()

    def __eq__(self: object, other: object) -> bool:
        return values(self) == values(other) if other.__class__ is self.__class__ else NotImplemented

    def __hash__(self: object) -> int:
        return hash(values(self))

    return __eq__, __hash__ if frozen else None


def _assign(instance: object, fields: dict[str, object], args: tuple[object, ...], kwargs: dict[str, object]) -> bool:
    """Assign keywords and default factories as `__init__` does. Return False, without a change, for wrong arguments."""
    given = dict(zip(fields, args, strict=False)) | kwargs
    if len(given) != len(args) + len(kwargs) or not given.keys() <= fields.keys():
        return False
    values = {name: given.get(name, default) for name, default in fields.items()}
    if any(value is _REQUIRED for value in values.values()):
        return False
    for name, value in values.items():
        object.__setattr__(instance, name, value.make() if isinstance(value, _Factory) else value)
    return True


def _compiled_init(cls: type, fields: dict[str, object], frozen: bool) -> Callable[..., None]:
    """Return a compiled `__init__` with one parameter for each field.

    That of a frozen class assigns through the slots, past its `__setattr__`.
    """
    namespace: dict[str, Any] = {"_REQUIRED": _REQUIRED}
    parameters, lines = ["self"], ["pass"]
    for name, default in fields.items():
        namespace[f"_set_{name}"] = getattr(cls, name).__set__
        value = parameter = name
        if isinstance(default, _Factory):
            namespace[f"_make_{name}"] = default.make
            parameter, value = f"{name}=_REQUIRED", f"_make_{name}() if {name} is _REQUIRED else {name}"
        elif default is not _REQUIRED:
            namespace[f"_default_{name}"] = default
            parameter = f"{name}=_default_{name}"
        parameters.append(parameter)
        lines.append(f"_set_{name}(self, {value})" if frozen else f"self.{name} = {value}")
    source = f"def __init__({', '.join(parameters)}):\n " + "\n ".join(lines)
    exec(source, namespace)  # noqa: S102 (made of field names only)
    init: Callable[..., None] = namespace["__init__"]
    init.__qualname__ = f"{cls.__qualname__}.__init__"
    init.__module__ = cls.__module__
    return init


def _repr(self: Any) -> str:
    values = ", ".join([f"{name}={getattr(self, name)!r}" for name in self.__match_args__])
    return f"{self.__class__.__qualname__}({values})"


def _frozen_setattr(_: object, name: str, __: object) -> NoReturn:
    raise AttributeError(f"cannot assign to field {name!r}")


def _frozen_delattr(_: object, name: str) -> NoReturn:
    raise AttributeError(f"cannot delete field {name!r}")
