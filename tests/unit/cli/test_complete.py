"""Shell completion: words of `kmodd complete`, and bash's use of them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from kmodd.cli import complete
from kmodd.cli.__main__ import TOOLS, VERBS
from kmodd.cli.kmod.insmod import LONG as INSMOD
from kmodd.cli.kmod.modprobe_options import LONG as MODPROBE
from kmodd.cli.kmod.rmmod import LONG as RMMOD
from tests import program, rootfs
from tests.elf_maker import Maker

ROOT = Path(__file__).resolve().parents[3]
BASH, ZSH, FISH = (
    ROOT / "data/completions" / name for name in ("bash/kmodd", "zsh/_kmodd-tools", "fish/kmodd-tools.fish")
)
OURS = {"root", "remove-dependencies", "wait"}
"""Options that no file need offer: kmodd's own for tests, a deprecated one, one of rmmod that is refused."""


def offered(*argv: str, root: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert complete.main(["--root", str(root), *argv]) == 0
    return capsys.readouterr().out.splitlines()


def test_words(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    root = rootfs.build("loaded", tmp_path / "root")
    modules = offered("modules", root=root, capsys=capsys)
    assert {"ext4", "kvm_intel"} <= set(modules)
    assert len(modules) == len(set(modules))
    aliases = offered("aliases", root=root, capsys=capsys)
    assert "fs-ext4" in {alias.replace("_", "-") for alias in aliases}
    assert not [alias for alias in aliases if set(alias) & set("*?[")]
    loaded = (root / "proc/modules").read_text().splitlines()
    assert offered("loaded", root=root, capsys=capsys) == [line.split()[0] for line in loaded]
    assert offered("parameters", "nosuch", root=root, capsys=capsys) == []
    assert offered("loaded", root=tmp_path / "nowhere", capsys=capsys) == []


def test_each_parameter_of_a_module_is_offered_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    module = tmp_path / "params.ko"
    texts = b"license=GPL\0parm=number:a number\0parmtype=number:int\0parmtype=word:charp\0name=params\0"
    module.write_bytes(Maker().add(b".modinfo", texts).image())
    assert sorted(offered("parameters", str(module), root=Path("/"), capsys=capsys)) == ["number=", "word="]


def test_a_wrong_call(capsys: pytest.CaptureFixture[str]) -> None:
    assert complete.main(["nonsense"]) == 2
    assert "usage: kmodd complete" in capsys.readouterr().err


@pytest.mark.parametrize("path", [BASH, ZSH, FISH], ids=["bash", "zsh", "fish"])
def test_every_option_is_offered(path: Path) -> None:
    text = path.read_text()
    for name in {*MODPROBE, *INSMOD, *RMMOD, "json"} - OURS:
        assert re.search(rf"(--|-l ){re.escape(name)}\b", text), name


def test_verbs_and_their_options_are_those_of_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Completion asks `kmodd complete`, which has the declaration that the help is made from."""
    verbs = [line.split("\t")[0] for line in offered("verbs", root=Path("/"), capsys=capsys)]
    assert verbs == [*(verb for verb, text in VERBS.items() if text), *TOOLS, "help"]
    for verb in [*(verb for verb, text in VERBS.items() if text), "policy test"]:
        options = [line.split("\t")[0] for line in offered("options", *verb.split(), root=Path("/"), capsys=capsys)]
        text = program.run([*verb.split(), "--help"]).out.decode()
        shown = re.findall(r"^  +(-\w), (--[\w-]+)|^  +(--[\w-]+)", text, re.MULTILINE)
        assert options == [word for words in shown for word in words if word], verb
    for verb in ("modprobe", "help", "loader", "nosuch"):
        assert offered("options", verb, root=Path("/"), capsys=capsys) == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("stat", {"status"}),
        ("--ver", {"--version"}),
        ("help expl", {"explain"}),
        ("explain --js", {"--json"}),
        ("explain kvm_", {"kvm_intel"}),
        ("settle --ti", {"--timeout"}),
        ("why kvm_", {"kvm_intel"}),
        ("why --bo", {"--boot"}),
        ("deny kvm_", {"kvm_intel"}),
        ("check --benchmark st", {"stig"}),
        ("history --module kvm_", {"kvm_intel"}),
        ("history --result den", {"denied"}),
        ("history --directory /us", {"/usr"}),
        ("policy te", {"test"}),
        ("policy test --contai", {"--container"}),
        ("profile ma", {"make"}),
        ("profile make --format lsm", {"lsmod"}),
        ("modprobe -r lo", {"loop"}),
    ],
)
def test_bash_of_kmodd(line: str, words: set[str], tmp_path: Path) -> None:
    """With a script as `kmodd`: verbs and options are the real ones, modules fixed words."""
    kmodd = tmp_path / "kmodd"
    real = " ".join(map(shlex.quote, program.command()))
    kmodd.write_text(
        f"#!/bin/sh\ncase $2 in modules | loaded) printf '%s\\n' kvm_intel loop ;; *) exec {real} \"$@\" ;; esac\n"
    )
    kmodd.chmod(0o755)
    script = (
        f"source {BASH}\nCOMP_WORDS=(kmodd {line})\nCOMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n"
        '_kmodd\nprintf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True)
    assert (set(done.stdout.split()), done.stderr) == (words, "")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("modprobe kvm", {"kvm", "kvm_intel"}),
        ("modprobe kvm-", {"kvm-intel"}),
        ("modprobe -r lo", {"loop"}),
        ("modprobe --remove-holders lo", {"loop"}),
        ("modprobe loop ma", {"max_loop="}),
        ("modprobe -a loop kvm_", {"kvm_intel"}),
        ("modprobe --first", {"--first-time"}),
        ("modprobe -S 6 kvm_", {"kvm_intel"}),
        ("modprobe fs-e", {"fs-ext4"}),
        ("rmmod lo", {"loop"}),
        ("lsmod --j", {"--json"}),
        ("insmod --force-v", {"--force-vermagic"}),
        ("insmod x.ko ma", {"max_loop="}),
        ("modinfo kvm", {"kvm", "kvm_intel"}),
        ("modinfo --fi", {"--filename", "--field"}),
        ("depmod --no", {"--no-cache"}),
    ],
)
def test_bash(line: str, words: set[str], tmp_path: Path) -> None:
    """With a script as `kmodd`, which offers fixed words."""
    kmodd = tmp_path / "kmodd"
    kmodd.write_text(
        "#!/bin/sh\ncase $2 in modules) printf '%s\\n' kvm kvm_intel loop ;; aliases) echo fs_ext4 ;; "
        "loaded) printf '%s\\n' loop dummy ;; parameters) printf '%s\\n' max_loop= max_part= | grep max_l ;; esac\n"
    )
    kmodd.chmod(0o755)
    script = (
        f"source {BASH}\nCOMP_WORDS=({line})\nCOMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n"
        'compopt() { :; }\n_kmodd_tool\nprintf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True)
    assert (set(done.stdout.split()), done.stderr) == (words, "")
