"""Names into modules: the order of sources, both forms of each index, layers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from kmodd.config import modprobe_d
from kmodd.config.modprobe_d import ConfFile, Config
from kmodd.errors import UnmatchedBracket, Where
from kmodd.index.catalog import MAX_RESULTS, SOURCES, Catalog, Hit, Snapshot, lookup, lookup_or_nothing
from kmodd.index.layer import Layer
from tests import rootfs
from tests.rootfs import ROOTFS, twins

TEXTS = {path.name: path.read_bytes() for path in (ROOTFS / "_tree").iterdir()}
BINS = twins(ROOTFS / "_tree")
FORMS = pytest.mark.parametrize("files", [TEXTS, BINS, TEXTS | BINS], ids=["texts", "bins", "both"])


def config(text: str) -> Config:
    return modprobe_d.parse([ConfFile("/etc/modprobe.d/a.conf", text)])


def snapshot(files: Mapping[str, bytes], text: str = "", like_kmod: bool = False) -> Snapshot:
    return Snapshot(Catalog([Layer("/lib/modules/1", files.get)], like_kmod), config(text))


def names(hits: tuple[Hit, ...]) -> list[str]:
    return [hit.module for hit in hits]


def test_sources_stand_in_kmods_order() -> None:
    assert [source.__name__.strip("_") for source in SOURCES] == [
        "config_aliases", "module_names", "symbols", "commands", "aliases", "builtin_names", "builtin_aliases",
    ]  # fmt: skip


@FORMS
@pytest.mark.parametrize("like_kmod", [False, True])
@pytest.mark.parametrize(
    ("text", "source", "modules"),
    [
        ("ext4", "module name", ["ext4"]),
        ("snd-pcsp", "module name", ["snd_pcsp"]),
        ("symbol:jbd2__journal_start", "symbol", []),
        ("fs-ext4", "alias", ["ext4"]),
        ("aes", "alias", ["aesni_intel", "padlock_aes"]),
        ("serio", "builtin name", ["serio"]),
        ("crypto-sha256", "builtin alias", ["sha256_generic"]),
        ("char-major-4-64", "builtin alias", ["8250"]),
        ("nosuch", "", []),
        ("", "", []),
    ],
)
def test_each_source_answers(
    files: dict[str, bytes], like_kmod: bool, text: str, source: str, modules: list[str]
) -> None:
    hits = lookup(text, snapshot(files, like_kmod=like_kmod))
    assert names(hits) == modules
    assert {hit.source for hit in hits} <= {source}


@FORMS
def test_symbols(files: dict[str, bytes]) -> None:
    symbol, module = TEXTS["modules.symbols"].decode().splitlines()[5].split()[1:]
    (hit,) = lookup(symbol, snapshot(files))
    assert hit.module == module
    assert hit.alias == symbol
    assert lookup(symbol[:-1], snapshot(files)) == ()
    assert lookup("symbol:", snapshot(files)) == ()


def test_the_first_source_with_a_hit_ends_the_search() -> None:
    text = (
        "alias ext4 loop\nalias ext* dummy\ninstall aes /bin/true\ninstall jbd2 /bin/true\nremove fs_ext4 /bin/true\n"
    )
    shot = snapshot(TEXTS, text)
    assert names(lookup("ext4", shot)) == ["loop", "dummy"]
    assert [hit.source for hit in lookup("jbd2", shot)] == ["module name"]
    assert [hit.source for hit in lookup("aes", shot)] == ["command"]
    assert [hit.source for hit in lookup("fs-ext4", shot)] == ["command"]
    assert lookup("fs-ext4", shot)[0].command is None, "a remove line inserts nothing"


def test_hits_have_their_line() -> None:
    (hit,) = lookup("fs-ext4", snapshot(TEXTS))
    line = TEXTS["modules.alias"].decode().splitlines().index("alias fs-ext4 ext4") + 1
    assert (hit.pattern, hit.at) == ("fs-ext4", Where("modules.alias", line))
    (hit,) = lookup("fs-ext4", snapshot(BINS))
    assert (hit.pattern, hit.at) == ("fs_ext4", Where("modules.alias.bin", 0))
    (hit,) = lookup("y", snapshot(TEXTS, "\nalias [x-z] loop\n"))
    assert (hit.pattern, hit.at) == ("[x-z]", Where("/etc/modprobe.d/a.conf", 2))
    assert hit.alias == "[x-z]", "options go by the pattern of a configured alias"


def test_an_answer_is_remembered_with_its_snapshot_and_not_beyond() -> None:
    files = {"modules.alias": b"alias a:* one\n"}
    first, second = snapshot(files), snapshot({"modules.alias": b"alias a:* two\n"})
    assert lookup("a:1", first) is lookup("a:1", first)
    assert names(lookup("a:1", second)) == ["two"]
    assert lookup("b", first) == ()
    assert first.answers["b"] == ()
    for number in range(3 * MAX_RESULTS):
        assert names(lookup(f"a:{number}", first)) == ["one"]
        assert len(first.answers) <= MAX_RESULTS


def test_unmatched_bracket() -> None:
    with pytest.raises(UnmatchedBracket):
        lookup("a[b", snapshot(TEXTS))
    assert lookup_or_nothing("a]b", snapshot(TEXTS)) == ()


def test_an_index_is_read_once_and_at_the_first_lookup() -> None:
    asked: list[str] = []

    def read(name: str) -> bytes | None:
        asked.append(name)
        return TEXTS.get(name)

    shot = Snapshot(Catalog([Layer("/x", read)]), Config())
    lookup("ext4", shot)
    lookup("jbd2", shot)
    assert asked == ["modules.dep"]
    lookup("nosuch", shot)
    lookup("nosuch", shot)
    assert sorted(asked) == sorted({*asked}), "each once"
    assert "modules.symbols" not in asked


@pytest.mark.parametrize(
    ("files", "is_stale", "like_kmod", "wanted"),
    [
        (TEXTS | BINS, False, False, "modules.alias"),
        (TEXTS | BINS, True, False, "modules.alias.bin"),
        (TEXTS | BINS, False, True, "modules.alias.bin"),
        (BINS, False, False, "modules.alias.bin"),
        (TEXTS, True, True, "modules.alias"),
    ],
)
def test_which_twin_is_read(files: dict[str, bytes], is_stale: bool, like_kmod: bool, wanted: str) -> None:
    catalog = Catalog([Layer("/x", files.get, lambda _: is_stale)], like_kmod)
    (match,) = catalog.aliases("fs_ext4")
    assert match.at.file == wanted


def test_a_damaged_bin_is_reported_and_the_text_is_read() -> None:
    shot = snapshot(TEXTS | {"modules.dep.bin": b"rubbish of more than twelve bytes"}, like_kmod=True)
    assert names(lookup("ext4", shot)) == ["ext4"]
    assert "modules.dep.bin: offset 0: magic 72756262, expected b007f457; run depmod" in map(str, shot.problems)


def test_damage_found_later_is_reported_once_and_the_text_is_read() -> None:
    cut = {name: data[: len(data) // 2] for name, data in BINS.items()}
    shot = snapshot(TEXTS | cut, like_kmod=True)
    for _ in range(2):
        assert names(lookup("fs-ext4", shot)) == ["ext4"]
        assert names(lookup("crypto-sha256", shot)) == ["sha256_generic"]
        assert len(list(shot.catalog.dump("modules.symbols"))) == 141
    files = [problem.at.file for problem in shot.problems]
    assert len(files) == len(set(files)) >= 4
    assert all(file.endswith(".bin") for file in files)


def test_a_damaged_bin_without_a_text_finds_nothing() -> None:
    shot = snapshot({"modules.alias.bin": BINS["modules.alias.bin"][:-1]}, like_kmod=True)
    assert lookup("fs-ext4", shot) == ()
    assert [problem.at.file for problem in shot.problems] == ["modules.alias.bin"]


def test_an_empty_bin_is_as_good_as_none() -> None:
    """depmod without modules.builtin leaves a modules.builtin.bin of no bytes."""
    shot = snapshot(TEXTS | {"modules.builtin.bin": b""}, like_kmod=True)
    assert shot.catalog.is_builtin("serio")
    assert shot.problems == ()


def test_bad_lines_are_problems() -> None:
    files = TEXTS | {"modules.alias": b"alias a loop\nalias b\n", "modules.dep": b"kernel/loop.ko:\nkernel/x"}
    shot = snapshot(files)
    assert names(lookup("a", shot)) == ["loop"]
    assert lookup("b", shot) == ()
    places = [str(problem.at) for problem in shot.problems]
    assert places == ["modules.dep:2", "modules.alias:2"]


def test_no_tree_answers_nothing() -> None:
    shot = snapshot({}, "alias a b\n")
    assert names(lookup("a", shot)) == ["b"]
    assert lookup("ext4", shot) == ()
    assert list(shot.catalog.dump("modules.alias")) == []
    assert shot.catalog.names() == ()


@FORMS
def test_dump_is_in_byte_order(files: dict[str, bytes]) -> None:
    for index in ("modules.alias", "modules.symbols"):
        pairs = list(snapshot(files).catalog.dump(index))
        assert pairs == list(snapshot(BINS).catalog.dump(index))
        assert [key for key, _ in pairs] == sorted(key for key, _ in pairs)


def test_dump_after_the_trie_was_made() -> None:
    shot = snapshot(TEXTS)
    lookup("nosuch", shot)
    assert len(list(shot.catalog.dump("modules.alias"))) == 138


# ── layers ───────────────────────────────────────────────────────────────────────────────────────────────────────────

ABOVE = {
    "modules.dep": b"extra/loop.ko: extra/new.ko\nextra/new.ko:\n",
    "modules.alias": b"alias new-* new\nalias fs-ext4 new\nalias block-major-7-* loop\n",
    "modules.symbols": b"# x\nalias symbol:new_symbol new\n",
}


def layered() -> Snapshot:
    layers = [Layer("/lib/modules/1", ABOVE.get, label="index.d/ext/"), Layer("/lib/modules/1", TEXTS.get)]
    return Snapshot(Catalog(layers), Config())


def test_the_upper_layer_has_the_module() -> None:
    catalog = layered().catalog
    loop, ext4 = catalog.dep("loop"), catalog.dep("ext4")
    assert loop is not None
    assert ext4 is not None
    assert loop.path == "/lib/modules/1/extra/loop.ko"
    assert loop.deps == ("/lib/modules/1/extra/new.ko",)
    assert ext4.path == "/lib/modules/1/kernel/fs/ext4/ext4.ko"
    assert catalog.names()[:2] == ("loop", "new")
    assert len(catalog.names()) == 109


def test_aliases_of_all_layers_count_the_upper_ones_first() -> None:
    hits = lookup("fs-ext4", layered())
    assert names(hits) == ["new", "ext4"]
    assert str(hits[0].at) == "index.d/ext/modules.alias:2"


def test_an_alias_below_does_not_bring_in_what_is_above_again() -> None:
    assert names(lookup("block-major-7-0", layered())) == ["loop"]
    assert names(lookup("symbol:new-symbol", layered())) == ["new"]
    assert names(lookup("serio", layered())) == ["serio"]


def test_modprobe_reports_damage_and_continues(tmp_path: Path) -> None:
    root = rootfs.build("names", tmp_path / "root")
    index = root / "lib" / "modules" / rootfs.RELEASE / "modules.dep.bin"
    index.write_bytes(index.read_bytes()[:40])
    said = rootfs.ours_in(root, "modprobe -D loop")
    assert said.status == 0
    assert said.out.startswith(b"insmod /lib/modules/")
    assert said.err.startswith(b"modprobe: ERROR: modules.dep.bin: offset ")
