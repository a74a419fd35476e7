"""Read a benchmark's modules from a file: a list of names, or XCCDF or OVAL, as scap-security-guide has them."""

from __future__ import annotations

import re
from xml.parsers import expat

from kmodd.dataclass import dataclass, replace
from kmodd.errors import Problem, Where
from kmodd.host.regular_files import read_given
from kmodd.planning.benchmarks import Benchmark, modules_named, parse
from kmodd.text import decode

_RULE = re.compile(r"(?:.*_rule_|oval:ssg-)?kernel_module_([A-Za-z0-9_-]{1,55})_disabled(?::def:\d+)?", re.ASCII)
"""The id of a rule (XCCDF) or a definition (OVAL)."""
_OPTIONS = ("ipv6_option",)
"""What is in the place of a name in a rule about parameters."""
_BEFORE = b"\xef\xbb\xbf\xff\xfe\0 \t\r\n"
"""Bytes that may precede the first of XML: a mark of UTF-8 or UTF-16, a half of UTF-16, and blanks."""
_YES = ("true", "1")
_LONGEST = 200
"""Characters of a title or a version at most."""
_BASES = 64
"""Profiles that extend each other in a line at most."""
_LIMIT = 32 << 20
"""Bytes of a file at most; a data stream of Debian's ssg has 6 MB."""
_DEPTH = 64
"""Open elements at most, of which expat keeps each; a data stream of scap-security-guide has 13."""


class BenchmarkError(Exception):
    """A file that is no benchmark; the text says why."""


def read_benchmark(path: str, profile: str = "") -> tuple[Benchmark, list[Problem]]:
    """Return the benchmark in a file, and a problem for each line of a list without a name.

    profile: the end of the id of an XCCDF profile, whose rules count; empty: all rules. Raises OSError, BenchmarkError.
    """
    data = read_given(path, _LIMIT)
    if data.lstrip(_BEFORE)[:1] == b"<":
        return _Reader(path).read(data, profile), []
    if profile:
        raise BenchmarkError("a list of names has no profiles")
    return parse(decode(data), path)


@dataclass(frozen=True, slots=True)
class _Rule:
    """A rule that keeps modules out."""

    modules: tuple[str, ...]
    is_selected: bool
    """By itself, without a profile."""
    groups: tuple[tuple[str, bool], ...] = ()
    """The groups that it is in, each with whether it is selected by itself."""

    def is_chosen(self, own: str, selected: dict[str, bool]) -> bool:
        """Return whether it counts: the rule and all of its groups are selected (XCCDF 1.2, 7.2.3 and 7.4).

        own: its id. selected: what a profile selects, by id.
        """
        levels = ((own, self.is_selected), *self.groups)
        return all(selected.get(each, by_itself) for each, by_itself in levels)


class _Reader:
    """A pass through one XML document. There is no document type, so that no entity can grow (XML 1.0, 4.4)."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._open: list[str] = []
        """Names of the open elements, without namespace."""
        self._profile = ""
        """The id of the open profile."""
        self._groups: list[tuple[str, bool]] = []
        """The open groups, each with whether it is selected by itself."""
        self._levels: tuple[tuple[str, bool], ...] = ()
        """The same, which all rules of a group share."""
        self._rules: dict[str, _Rule] = {}
        """By id."""
        self._definitions: dict[str, None] = {}
        self._selected: dict[str, dict[str, bool]] = {}
        """Profile → id of a rule or group → whether it is selected."""
        self._bases: dict[str, str] = {}
        """Profile → the one that it extends."""
        self._texts = {"title": "", "version": ""}

    def read(self, data: bytes, profile: str) -> Benchmark:
        """Return the benchmark. Raises BenchmarkError."""
        parser = expat.ParserCreate(namespace_separator=" ")
        parser.StartDoctypeDeclHandler = self._refuse
        parser.StartElementHandler, parser.EndElementHandler = self._start, self._end
        parser.CharacterDataHandler = self._text
        try:
            parser.Parse(data, True)
        except expat.ExpatError as error:
            raise BenchmarkError(f"{Where(self._path, error.lineno)}: {expat.ErrorString(error.code)}") from None
        except (LookupError, ValueError) as error:  # of an encoding that is no codec of Python, or not of single bytes
            raise BenchmarkError(f"{Where(self._path, 1)}: expected the encoding UTF-8 or UTF-16: {error}") from None
        every = dict.fromkeys(module for rule in self._rules.values() for module in rule.modules)
        names = self._chosen(profile) if profile else [*(every or self._definitions)]
        title = self._texts["title"].strip()[:_LONGEST] or self._path
        chosen = f", profile {profile}" if profile else ""
        found = Benchmark(title, tuple(names), f"{self._path}{chosen}")
        return replace(found, version=self._texts["version"].strip()[:_LONGEST])

    def _refuse(self, *_: object) -> None:
        raise BenchmarkError("it has a document type, which is not read; a benchmark needs none")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        kind = name.rpartition(" ")[2]
        self._open.append(kind)
        if len(self._open) > _DEPTH:
            raise BenchmarkError(f"expected at most {_DEPTH} elements in one another, found more")
        if kind == "Profile":
            self._profile = attributes.get("id", "")
            self._selected[self._profile] = {}
            self._bases[self._profile] = attributes.get("extends", "")
        elif kind == "select" and self._profile:
            self._selected[self._profile][attributes.get("idref", "")] = attributes.get("selected") in _YES
        elif kind == "Group":
            self._groups.append((attributes.get("id", ""), attributes.get("selected", "true") in _YES))
            self._levels = tuple(self._groups)
        elif kind == "Rule" and (modules := _modules_of(own := attributes.get("id", ""))):
            is_selected = attributes.get("selected", "true") in _YES
            self._rules[own] = _Rule(modules, is_selected, self._levels)
        elif kind == "definition":
            self._definitions.update(dict.fromkeys(_modules_of(attributes.get("id", ""))))

    def _end(self, _: str) -> None:
        match self._open.pop():
            case "Profile":
                self._profile = ""
            case "Group":
                self._groups.pop()
                self._levels = tuple(self._groups)

    def _text(self, text: str) -> None:
        kind = self._open[-1]
        if self._open[-2:-1] == ["Benchmark"] and len(self._texts.get(kind, "x" * (_LONGEST + 1))) <= _LONGEST:
            self._texts[kind] += text

    def _chosen(self, profile: str) -> list[str]:
        """Return the modules whose rules are selected by a profile, one that it extends, or by themselves, in order."""
        known = [each for each in self._selected if each == profile or each.endswith(f"_profile_{profile}")]
        if not known:
            names = ", ".join(sorted(each.rpartition("_profile_")[2] for each in self._selected)) or "none"
            raise BenchmarkError(f"it has no profile {profile!r}: expected one of {names}")
        base, line = known[0], dict.fromkeys(known[:1])
        while (base := self._bases.get(base, "")) in self._selected and base not in line:
            line[base] = None
            if len(line) > _BASES:
                raise BenchmarkError(f"expected at most {_BASES} profiles that extend each other, found more")
        selected: dict[str, bool] = {}
        for each in reversed(line):
            selected.update(self._selected[each])
        # A tailoring file has profiles without the rules.
        rules = self._rules | {each: _Rule(_modules_of(each), False) for each in selected if each not in self._rules}
        chosen = [rule for own, rule in rules.items() if rule.is_chosen(own, selected)]
        return [*dict.fromkeys(module for rule in chosen for module in rule.modules)]


def _modules_of(text: str) -> tuple[str, ...]:
    """Return the modules that a rule keeps out, with `_`; none: it is about something else."""
    found = _RULE.fullmatch(text)
    return modules_named(found[1]) if found and found[1].replace("-", "_") not in _OPTIONS else ()
