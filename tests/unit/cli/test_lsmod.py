"""lsmod: one read of /proc/modules, kmod's output; /sys changes no number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kmodd.cli.kmod import lsmod

MODULES = """\
ext4 983040 1 - Live 0x0000000000000000
crc16 16384 1 ext4, Live 0x0000000000000000
a_name_of_twenty_chars 123456789 0 - Live 0x0
slow 4096 1 - Loading 0x0 (OE+)
fixed 4096 - - Live 0x0
crc32c 16384 3 xfs,ext4,btrfs, Live 0x0
dying 16384 -1 [permanent], Unloading 0x0
rubbish
"""
TABLE = """\
Module                  Size  Used by
ext4                  983040  1
crc16                  16384  1 ext4
a_name_of_twenty_chars 123456789  0
slow                    4096  1
fixed                   4096  -2
crc32c                 16384  3 xfs,ext4,btrfs
dying                  16384  -1
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/modules").write_text(MODULES)
    return tmp_path


def test_table(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lsmod.main(["--root", str(root)]) == 0
    assert capsys.readouterr() == (TABLE, "")


def test_sys_gives_the_order_of_holders_and_nothing_else(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """kmod issue 41: a module that vanishes between the two reads showed -2."""
    folder = root / "sys/module/crc32c/holders"
    folder.mkdir(parents=True)
    for name in ("btrfs", "ext4", "xfs"):
        (folder / name).touch()
    (folder.parent / "refcnt").write_text("77\n")
    (folder.parent / "coresize").write_text("77\n")
    other = root / "sys/module/crc16/holders"
    other.mkdir(parents=True)
    lsmod.main(["--root", str(root)])
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if line.startswith("crc32c"))
    assert row.startswith("crc32c                 16384  3 ")
    assert row.rpartition(" ")[2].split(",") == [path.name for path in folder.iterdir()]
    assert "crc16                  16384  1 ext4" in lines
    (folder / "new").touch()
    lsmod.main(["--root", str(root)])
    assert capsys.readouterr().out == TABLE


def test_json(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lsmod.main(["--root", str(root), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[5] == {
        "module": "crc32c", "size": 16384, "used": 3, "used_by": ["xfs", "ext4", "btrfs"], "state": "live",
    }  # fmt: skip
    assert [(row["module"], row["used"], row["state"]) for row in (*rows[3:5], rows[6])] == [
        ("slow", 1, "coming"), ("fixed", None, "live"), ("dying", -1, "going"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("argv", "status", "out", "err"),
    [
        (["x"], 1, "", "lsmod: ERROR: too many arguments provided.\n"),
        (["-z"], 1, "", "lsmod: invalid option -- 'z'\n"),
        (["-h"], 0, lsmod.HELP, ""),
        (["--version"], 0, "kmod version 34.2\n+ZSTD +XZ +ZLIB +OPENSSL\n", ""),
        (["-s", "-v", "--root", "/nowhere"], 1, "", None),
    ],
)
def test_options_are_those_of_34(
    argv: list[str], status: int, out: str, err: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lsmod.main(argv) == status
    said = capsys.readouterr()
    assert said.out == out
    assert said.err == (err if err is not None else (
        "lsmod: ERROR: could not open /proc/modules: No such file or directory\n"
        "lsmod: ERROR: could not get list of modules: No such file or directory\n"
    ))  # fmt: skip
