"""Look-ups on whole Debian trees: ours, each module once and in order, are what the machine's libkmod answers.

The peer is `kmod_module_new_from_lookup`, which is what `modprobe -R` prints, in this process through ctypes, on
indexes that kmod's own depmod wrote. Each run draws other names; the run's head prints the seed that repeats them.
Order among builtins, which have no priority, is compared on small trees made here.
"""

from __future__ import annotations

import ctypes
import locale
import os
import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmodd.index.alias_trie import AliasTrie
from kmodd.names import module_of_path, underscores
from tests import trees

pytestmark = [pytest.mark.differential, pytest.mark.timeout(900)]

FILL = "0123456789ABCDEFabcdefgxyz:,._*?\\'\" $()/=+#éÿ\udcff" + "pci:vdsvsdbcsci"
"""Texts for wildcards: hexadecimal and not, letters that begin fields, bytes outside ASCII."""


class LibKmod:
    """The peer, on one folder of indexes, without any configuration."""

    def __init__(self, folder: Path) -> None:
        self._lib = lib = ctypes.CDLL("libkmod.so.2")
        pointer = ctypes.c_void_p
        for name, result, arguments in (
            ("kmod_new", pointer, [ctypes.c_char_p, pointer]),
            ("kmod_load_resources", ctypes.c_int, [pointer]),
            ("kmod_module_new_from_lookup", ctypes.c_int, [pointer, ctypes.c_char_p, pointer]),
            ("kmod_list_next", pointer, [pointer, pointer]),
            ("kmod_module_get_module", pointer, [pointer]),
            ("kmod_module_get_name", ctypes.c_char_p, [pointer]),
            ("kmod_module_unref", pointer, [pointer]),
            ("kmod_module_unref_list", ctypes.c_int, [pointer]),
        ):
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments
        no_files = (ctypes.c_char_p * 1)(None)
        self._context = lib.kmod_new(os.fsencode(folder), ctypes.cast(no_files, pointer))
        assert self._context
        assert lib.kmod_load_resources(self._context) == 0

    def lookup(self, name: str) -> list[str]:
        """The modules, each once."""
        lib = self._lib
        found = ctypes.c_void_p(None)
        status = lib.kmod_module_new_from_lookup(self._context, os.fsencode(name), ctypes.byref(found))
        assert status == 0, f"libkmod on {name!r}: {status}"
        names = []
        item = found.value
        while item:
            module = lib.kmod_module_get_module(item)
            names.append(lib.kmod_module_get_name(module).decode())
            lib.kmod_module_unref(module)
            item = lib.kmod_list_next(found, item)
        lib.kmod_module_unref_list(found)
        return list(dict.fromkeys(names))


class Tree:
    """One Debian tree as both see it."""

    def __init__(self, flavour: str) -> None:
        folder = trees.module_dir(trees.debian_tree(flavour))
        self.peer = LibKmod(folder)
        self.text = (folder / "modules.alias").read_text("utf-8", "surrogateescape")
        self.index = AliasTrie.from_text(self.text, "modules.alias")
        dep = (folder / "modules.dep").read_text().splitlines()
        builtin = (folder / "modules.builtin").read_text().splitlines()
        self.known = {module_of_path(line.partition(":")[0]) for line in dep + builtin}

    def ours(self, name: str) -> list[str]:
        return list(dict.fromkeys(match.module for match in self.index.matches(underscores(name))))

    def differences(self, names: list[str]) -> list[tuple[str, list[str], list[str]]]:
        """(name, ours, theirs) where they differ. Where we have nothing, aliases of builtins come in, which are another
        index; a name that is a module's is not looked up among aliases at all.
        """
        found = []
        for name in names:
            if underscores(name) in self.known:
                continue
            ours, theirs = self.ours(name), self.peer.lookup(name)
            if ours != theirs and (ours or not set(theirs) <= self.known or any(map(self._has, theirs))):
                found.append((name, ours, theirs))
        return found

    def _has(self, module: str) -> bool:
        return f" {module}\n" in self.text


@pytest.fixture(scope="module", params=["6.1-amd64", "6.1-cloud-amd64", "6.12-amd64"])
def tree(request: pytest.FixtureRequest) -> Iterator[Tree]:
    """libkmod matches by fnmatch(3), for which a `?` is a byte in the C locale only, where modprobe runs."""
    before = locale.setlocale(locale.LC_CTYPE)
    locale.setlocale(locale.LC_CTYPE, "C")
    with trees.may_be_away(request.param):
        yield Tree(request.param)
    locale.setlocale(locale.LC_CTYPE, before)


def test_every_pattern_made_concrete(tree: Tree, rng: random.Random) -> None:
    patterns = [pattern for pattern, _ in tree.index.entries()]
    assert len(patterns) == tree.text.count("\nalias ")
    names = [concrete(pattern, rng) for pattern in patterns]
    for number in rng.sample(range(len(names)), len(names) // 20):
        names[number] = near_miss(names[number], rng)
    assert tree.differences([name for name in names if "[" not in name and "]" not in name]) == []


def test_true_shapes(tree: Tree, rng: random.Random) -> None:
    """PCI and USB names as the kernel writes them, for every pattern of these."""
    names = [true_shape(pattern, rng) for pattern, _ in tree.index.entries() if pattern.startswith(("pci:v", "usb:v"))]
    assert tree.differences(names) == []
    assert all(map(tree.ours, names))


def test_the_devices_of_this_machine(tree: Tree) -> None:
    names = sorted({name for file in Path("/sys/devices").rglob("modalias") for name in lines_of(file)})
    assert tree.differences(names) == []


def test_without_processes_and_foreign_code(tree: Tree, rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pattern is found again, from the text on; a call of another program or library raises."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("only kmodd's own code may answer")

    names = [concrete(pattern, rng) for pattern, _ in tree.index.entries()]
    for place, name in (
        (subprocess, "Popen"), (subprocess, "run"), (os, "system"), (os, "popen"), (os, "fork"), (os, "posix_spawn"),
        (os, "execve"), (ctypes, "CDLL"), (ctypes, "PyDLL"), (ctypes.CDLL, "__init__"), (ctypes.CDLL, "__getattr__"),
    ):  # fmt: skip
        monkeypatch.setattr(place, name, refuse)
    index = AliasTrie.from_text(tree.text, "modules.alias")
    answered = 0
    for name, (pattern, module) in zip(names, index.entries(), strict=True):
        if "[" not in name and "]" not in name:
            assert module in [match.module for match in index.matches(underscores(name))], (name, pattern)
            answered += 1
    assert answered > 0.99 * len(names)


@pytest.fixture(params=range(20))
def small_tree(
    request: pytest.FixtureRequest, rng: random.Random, tmp_path: Path
) -> tuple[list[tuple[str, str]], LibKmod]:
    """Builtins with random aliases: (entries, peer)."""
    folder = tmp_path / "lib/modules/1.0"
    (folder / "kernel").mkdir(parents=True)
    entries = []
    for number in range(rng.randint(2, 20)):
        for _ in range(rng.choice((1, 1, 2, 3))):
            entries.append(("x:" + "".join(rng.choices("aabbc*?", k=rng.randint(0, 5))), f"m{number}"))
    entries = [
        (re.sub("c", lambda _: rng.choice(("c", "[ab]", "[!c]")), pattern), module) for pattern, module in entries
    ]
    modules = dict.fromkeys(module for _, module in entries)
    (folder / "modules.builtin").write_text("".join(f"kernel/{module}.ko\n" for module in modules))
    (folder / "modules.order").write_text("")
    (folder / "modules.builtin.modinfo").write_text(
        "".join(f"{module}.alias={pattern}\0" for pattern, module in entries)
    )
    subprocess.run(["depmod", "-b", tmp_path, "1.0"], check=True, env={"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"})
    return entries, LibKmod(folder)


def test_order_of_builtins(small_tree: tuple[list[tuple[str, str]], LibKmod], rng: random.Random) -> None:
    entries, peer = small_tree
    index = AliasTrie.from_entries(entries, builtin_order=True)
    for _ in range(60):
        name = "x:" + "".join(rng.choices("abc", k=rng.randint(0, 5)))
        assert list(dict.fromkeys(match.module for match in index.matches(name))) == peer.lookup(name), (name, entries)


def concrete(pattern: str, rng: random.Random) -> str:
    """A name that the pattern matches."""
    return "".join(
        "".join(rng.choices(FILL, k=rng.choice((0, 0, 1, 2, 4, 8, 8, 15))))
        if part == "*"
        else rng.choice(FILL[:40])
        if part == "?"
        else rng.choice([char for char in map(chr, range(33, 127)) if char not in "[]" and in_set(char, part)])
        if part.startswith("[")
        else part
        for part in parts(pattern)
    )


def parts(pattern: str) -> Iterator[str]:
    return (match[0] for match in re.finditer(r"\*|\?|\[[^]]*\]|[^*?[]+", pattern))


def in_set(char: str, brackets: str) -> bool:
    return re.fullmatch("[" + brackets[1:-1].replace("!", "^", 1) + "]", char) is not None


def near_miss(name: str, rng: random.Random) -> str:
    """One character dropped, doubled or changed."""
    at = rng.randrange(len(name))
    return name[:at] + rng.choice(("", name[at] * 2, rng.choice(FILL))) + name[at + 1 :]


def true_shape(pattern: str, rng: random.Random) -> str:
    """Each field that the pattern leaves open filled as wide as the kernel writes it (file2alias.c, pci-sysfs.c)."""
    four = {"v": 4, "p": 4, "d": 4}
    widths = {"v": 8, "d": 8, "sv": 8, "sd": 8} if pattern.startswith("pci:") else four
    fields = re.findall(r"([a-z]+)((?:\*|\?|\[[^]]*\]|[0-9A-F]+)*)", pattern.partition(":")[2])
    name = pattern.partition(":")[0] + ":"
    for field, value in fields:
        width = widths.get(field, 2)
        fixed = "".join(concrete(part, rng) for part in parts(value) if part != "*")
        free = max(0, width - len(fixed)) if "*" in value else 0
        name += field + fixed + "".join(rng.choices("0123456789ABCDEF", k=free))
    return name


def lines_of(file: Path) -> list[str]:
    try:
        return file.read_text("utf-8", "surrogateescape").split()
    except OSError:
        return []
