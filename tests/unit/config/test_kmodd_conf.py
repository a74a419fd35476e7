"""kmodd.conf: systemd's ini style (systemd.syntax(7)), its folders and masking (systemd.unit(5)), its words."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmodd.config import kmodd_conf
from kmodd.config.modprobe_d import ConfFile, Extensions
from kmodd.errors import Where
from kmodd.host.config_files import read_boot_list, read_settings


def parse(text: str) -> kmodd_conf.Settings:
    return kmodd_conf.parse([ConfFile("/etc/kmodd/kmodd.conf", text)])


def test_extensions_are_off_by_default() -> None:
    """Each has a word of its own, and is off in drop-in mode."""
    assert parse("") == kmodd_conf.Settings()
    assert kmodd_conf.Settings().extensions == Extensions()


def test_each_extension_has_a_word() -> None:
    words = dict(kmodd_conf.EXTENSIONS)
    assert sorted(words.values()) == sorted(Extensions.__match_args__)
    for word, name in words.items():
        extensions = parse(f"[Kmodd]\n{word}=yes\n").extensions
        assert [field for field in Extensions.__match_args__ if getattr(extensions, field)] == [name]
    assert not parse("[Kmodd]\nNoticeEdits=off\n").notice_edits


@pytest.mark.parametrize(("text", "on"), [("yes", True), ("TRUE", True), ("1", True), ("off", False), ("n", False)])
def test_booleans_as_systemd_reads_them(text: str, on: bool) -> None:
    assert parse(f"[Kmodd]\n  SoftdepsAddUp =  {text}  \n").extensions.softdeps_add_up is on


@pytest.mark.parametrize(("text", "lanes", "steady"), [("3", 3, 3), ("auto", "auto", 1), ("1", 1, 1)])
def test_lanes_is_a_number_or_auto(text: str, lanes: int | str, steady: int) -> None:
    settings = parse(f"[Kmodd]\nLanes={text}\n")
    assert (settings.lanes, settings.steady_lanes, settings.problems) == (lanes, steady, ())


def test_comments_continuations_and_the_last_one_wins() -> None:
    text = "# c\n; c\n[Kmodd]\nSoftdepsAddUp=\\\n# within\n  yes\nNoticeEdits=yes\nNoticeEdits=no\n"
    settings = parse(text)
    assert settings.extensions.softdeps_add_up
    assert not settings.notice_edits
    assert settings.problems == ()


@pytest.mark.parametrize(
    ("text", "line", "column", "expected"),
    [
        ("[Kmodd]\nSoftdepsAddUpp=yes\n", 2, 1, "unknown key 'SoftdepsAddUpp'"),
        ("[Kmodd]\n\nSoftdepsAddUp=perhaps\n", 3, 15, "expects yes or no, not 'perhaps'"),
        ("[Kmodd]\nSoftdepsAddUp\n", 2, 1, "expected KEY=VALUE"),
        ("[Kmodd]\nLanes=many\n", 2, 7, "expects an integer from 1 to 64 or auto, not 'many'"),
        ("[Kmodd]\nLanes=0\n", 2, 7, "expects an integer from 1 to 64 or auto, not '0'"),
        ("[Kmodd]\nStuckAfterSec=auto\n", 2, 15, "expects an integer from 1 to 86400, not 'auto'"),
        ("SoftdepsAddUp=yes\n", 1, 1, "outside of a section"),
        ("[Other]\nx=y\n", 1, 2, "unknown section 'Other'"),
    ],
)
def test_what_is_not_known_is_named_with_its_place(text: str, line: int, column: int, expected: str) -> None:
    """An unknown key is a warning with file and line."""
    settings = parse(text + "[Kmodd]\nNoticeEdits=no\n")
    assert not settings.notice_edits
    (problem,) = settings.problems
    assert (problem.at.file, problem.at.line, problem.column) == ("/etc/kmodd/kmodd.conf", line, column)
    assert expected in problem.expected


def put(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_folders_and_masking(tmp_path: Path) -> None:
    put(tmp_path, "usr/lib/kmodd/kmodd.conf", "[Kmodd]\nNoticeEdits=no\n")
    put(tmp_path, "usr/lib/kmodd/kmodd.conf.d/10-a.conf", "[Kmodd]\nSoftdepsAddUp=yes\n")
    put(tmp_path, "run/kmodd/kmodd.conf.d/20-b.conf", "[Kmodd]\nSoftdepKeepsInstall=yes\n")
    settings = read_settings(str(tmp_path))
    assert (settings.notice_edits, settings.extensions.softdeps_add_up, settings.extensions.softdep_keeps_install) == (
        False, True, True,
    )  # fmt: skip
    put(tmp_path, "etc/kmodd/kmodd.conf", "")
    (tmp_path / "etc/kmodd/kmodd.conf.d").mkdir()
    (tmp_path / "etc/kmodd/kmodd.conf.d/10-a.conf").symlink_to("/dev/null")
    put(tmp_path, "etc/kmodd/kmodd.conf.d/30-c.conf", "[Kmodd]\nSoftdepKeepsInstall=no\n")
    assert read_settings(str(tmp_path)) == kmodd_conf.Settings()


@pytest.mark.parametrize("path", ["kmodd.conf", "kmodd.conf.d/10-a.conf", "kmodd.conf.d"])
def test_a_file_that_cannot_be_read_leaves_the_policy_unknown(path: str, tmp_path: Path) -> None:
    """A link that leads nowhere; the other files are read."""
    put(tmp_path, "usr/lib/kmodd/kmodd.conf.d/20-b.conf", "[Kmodd]\nLanes=3\n")
    assert not read_settings(str(tmp_path)).broken
    link = tmp_path / "etc/kmodd" / path
    link.parent.mkdir(parents=True)
    link.symlink_to("/nowhere")
    settings = read_settings(str(tmp_path))
    assert (settings.broken, settings.policy_broken, settings.lanes) == (True, True, 3)
    (problem,) = settings.problems
    assert problem.at == Where(f"/etc/kmodd/{path}", 0)


@pytest.mark.parametrize(
    "text", ["\0" * 30, "[Kmodd]\nLanes=3\n# Policy\0", "[Kmodd]\nAutoclean=x\0\n", "[Else]\nx=\0\n"]
)
def test_nul_bytes_leave_the_policy_unknown(text: str) -> None:
    """A power cut may leave them in place of any line."""
    settings = kmodd_conf.parse([ConfFile("/etc/kmodd/kmodd.conf", text)])
    assert (settings.broken, settings.policy_broken) == (True, True)
    assert "NUL bytes" in settings.problems[0].expected
    assert settings.problems[0].at.line == text.partition("\0")[0].count("\n") + 1


def test_the_boot_list_of_a_machine(tmp_path: Path) -> None:
    put(tmp_path, "proc/cmdline", "quiet modules_load=first,second\n")
    put(tmp_path, "etc/modules", "# comment\nloop\n")
    put(tmp_path, "usr/lib/modules-load.d/a.conf", "bad name\nthird\n")
    put(tmp_path, "usr/lib/modules-load.d/b.conf", "masked\n")
    put(tmp_path, "etc/modules-load.d/b.conf", "")
    listed = read_boot_list(str(tmp_path))
    assert [module.name for module in listed.modules] == ["first", "second", "third", "loop"]
    assert [str(problem.at) for problem in listed.problems] == ["/usr/lib/modules-load.d/a.conf:1"]
