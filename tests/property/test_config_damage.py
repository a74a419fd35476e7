"""Damaged configuration files, and files that hypothesis draws, compared with the real modprobe."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kmodd.config import cmdline, modules_load_d
from kmodd.config.modprobe_d import ConfFile, Config, dump, merge, ordered, parse, parse_file
from kmodd.config.modules_conf import convert
from kmodd.errors import Problem
from tests.differential.kmod_peer import without_places

DAMAGED = 10_000
"""Files in one run of the damage test."""
AGAINST_KMOD = 400
"""So many of them are given to the real modprobe as well."""
DRAWN = 200
"""Directories that hypothesis draws in one run."""
FIXTURES = Path(__file__).parents[2] / "fixtures" / "conf"

HEALTHY = (
    "alias my-mod* really_long_modulename\nalias pci:v00008086d[0-9A-F]*sv*sd*bc*sc*i* e1000\nblacklist pc-spkr\n"
    "options snd-hda-intel index=0 \\\n  model=auto power_save=1\n# a comment\noptions my-mod* x=1\n",
    "install fred /sbin/modprobe barney; /sbin/modprobe --ignore-install fred $CMDLINE_OPTS\n"
    'remove fred /sbin/modprobe -r --ignore-remove fred && echo "gone: \\\\n"\nsoftdep c pre: a b post: d e\n',
    "softdep btrfs pre: crypto-crc32c pre: crypto-sha256\nsoftdep uas post: sd_mod pre: usb-storage\nblacklist x\n\n\n",
    "include /etc/old.conf\ninstall usb-storage :\nblacklist a]b\noptions\nalias x\n  # indented\n",
    "root=UUID=1 ro quiet snd-hda-intel.model=auto modprobe.blacklist=floppy,pc-spkr,, modules_load=loop,dm-mod x.y\n",
    'dyndbg="file x +p" parport.dyndbg="file a b +p" "usbcore.quirks=a b" module_blacklist=nouveau kmodd=off a.b.c=1\n',
    "# /etc/modules\n; another\n  loop\nne io=0x300\n\nfs-iso9660\n",
)
SPECIAL = [
    *"\\\n\0\r\t\v #[]\"'=.,-_*é\udcff`$/", "\\\n", "  ", "[a-z]", "pre:", " post: ", "alias ", "options ", "install ",
    "softdep ", "blacklist ", "if x\n", "endif\n", "add ",
]  # fmt: skip


# ── damage ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def damage(text: str, rng: random.Random) -> str:
    """The text with a few wounds."""
    for _ in range(rng.randint(1, 6)):
        begin = rng.randint(0, len(text))
        end = min(len(text), begin + rng.choice([0, 1, 1, 3, 20]))
        match rng.randrange(6):
            case 0:
                text = text[:begin] + text[end:]
            case 1:
                text = text[:begin] + rng.choice(SPECIAL) + text[end:]
            case 2:
                text = text[:end] + text[begin:end] * rng.randint(1, 4) + text[end:]
            case 3:
                text = text[:begin]
            case 4:
                byte = bytes([rng.randrange(256)]).decode("utf-8", "surrogateescape")
                text = text[:begin] + byte + text[begin + 1 :]
            case _:
                text = text[begin:] + text[:begin]
    return text


def lines_as_kmod_reads(text: str) -> list[str]:
    """freadline_wrapped, character by character: another way than the parser's to the same lines."""
    lines, line, at = [], "", 0
    while at < len(text):
        character, at = text[at], at + 1
        if character == "\n":
            lines.append(line)
            line = ""
            continue
        if character == "\\":
            character, at = (text[at], at + 1) if at < len(text) else ("\n", at)
            if character == "\n":
                continue
        line += character
    return [each.split("\0")[0] for each in [*lines, line]]


def check_problems(problems: tuple[Problem, ...], text: str) -> None:
    """Each problem names an existing line and a column in it, and can be printed."""
    lines = text.replace("\r", "\n").replace("\0", "\n").split("\n")
    for problem in problems:
        assert 1 <= problem.at.line <= len(lines)
        assert 0 <= problem.column <= len(problem.source) + 1
        assert problem.expected
        assert problem.with_caret()


def check_modprobe_d(text: str) -> None:
    """Every line that says something is either understood or a Problem."""
    config = parse_file(ConfFile("x.conf", text))
    said = [line for line in lines_as_kmod_reads(text) if line.strip("\t ") and not line.startswith("#")]
    understood = config.aliases, config.blacklist, config.options, config.installs, config.removes, config.softdeps
    assert len(said) == sum(map(len, understood)) + len(config.weakdeps) + len(config.problems)
    assert len(config.problems) == len(config.complaints)
    check_problems(config.problems, text)
    assert dump(config).count("\n") >= len(said) - len(config.problems)


def check_cmdline(text: str) -> None:
    line = cmdline.parse(text)
    check_problems(line.problems, text)
    assert all("." not in entry.module or '"' in entry.text for entry in line.options)
    assert all(line.modules_load + line.module_blacklist)


def check_boot_list(text: str) -> None:
    found = modules_load_d.parse([ConfFile("x.conf", text)])
    check_problems(found.problems, text)
    for module in found.modules:
        assert not set(" \t\r\n\0") & set(module.name)
        assert module.name[0] not in "#;"


def check_legacy_conf(text: str) -> None:
    """The result is valid modprobe.d."""
    converted = convert(ConfFile("modules.conf", text))
    check_problems(converted.problems, text)
    config = parse([ConfFile("converted.conf", converted.text)])
    assert config.problems == ()
    assert len(lines_as_kmod_reads(converted.text)) == converted.text.count("\n") + 1


PARSERS: tuple[Callable[[str], None], ...] = (check_modprobe_d, check_cmdline, check_boot_list, check_legacy_conf)


@pytest.fixture
def corpus() -> list[str]:
    old = [path.read_text() for path in sorted(FIXTURES.glob("*/*modules*"))]
    assert len(old) >= 3
    return [*HEALTHY, *old]


@pytest.mark.property
@pytest.mark.timeout(180)
def test_damaged_files(rng: random.Random, corpus: list[str], tmp_path: Path) -> None:
    """Each ends in Problems or in a correct answer: no exception, no hang."""
    for number in range(DAMAGED):
        text = damage(rng.choice(corpus), rng)
        for check in rng.sample(PARSERS, 2):
            try:
                check(text)
            except Exception as error:
                raise AssertionError(f"{check.__name__} of file {number}: {text!r}") from error
        if number < AGAINST_KMOD and "weakdep" not in text:
            compare_files({"x.conf": text}, tmp_path)


@pytest.mark.parametrize("check", PARSERS)
@pytest.mark.parametrize(
    "text", ["\\", "\n\\", "[", "[]", '"', ' "', "\\\n", "a\\\n", " ", "\t\n", "a.", "#\\\n", "\0", "if x\n", "alias a"]
)
def test_large_and_monotonous(check: Callable[[str], None], text: str) -> None:
    """No parser takes more than its time over a long row of the same."""
    check(text * (60_000 // len(text)))


# ── the real modprobe ────────────────────────────────────────────────────────────────────────────────────────────────


def kmod() -> str:
    """The real modprobe. Its absence, or an unknown version, is a failure: nothing would be compared."""
    path = shutil.which("modprobe", path="/usr/sbin:/sbin:/usr/bin")
    assert path, "no modprobe on this machine: install kmod"
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    assert version.startswith(("kmod version 30\n", "kmod version 34")), f"unknown: {version.splitlines()[0]}"
    return path


def run_kmod(*options: str, within: Path, command_line: Path | None = None) -> tuple[bytes, bytes]:
    """Standard output of `modprobe -c` as far as the indexes, and standard error."""
    command = [kmod_path(), "-d", "/nonexistent", "-S", "0", *options, "-c"]
    if command_line:
        bind = f"mount --bind {command_line} /proc/cmdline && exec"
        command = ["unshare", "--mount", "sh", "-c", f'{bind} "$@"', "sh", *command]
    done = subprocess.run(command, capture_output=True, cwd=within, env={"PATH": os.environ["PATH"]}, check=False)
    head, mark, _ = done.stdout.partition(b"\n# End of configuration files.")
    assert mark, f"{command}: {done}"
    return head, without_places(done.stderr)


def without_last_backslash(text: str) -> str:
    """kmod 30 reads a backslash at the end of a file as a byte 0xff, which kmod 34 corrects."""
    return text[:-1] if (len(text) - len(text.rstrip("\\"))) % 2 else text


_found: list[str] = []


def kmod_path() -> str:
    if not _found:
        _found.append(kmod())
    return _found[0]


def encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def same(config: Config, real: tuple[bytes, bytes]) -> None:
    """Both outputs, byte for byte."""
    assert encoded(dump(config)) == real[0]
    assert encoded("".join(line + "\n" for line in config.complaints)) == real[1]


def compare_files(files: dict[str, str], within: Path) -> int:
    """The directory `d` with these files, read by both. Returns how many bytes were equal."""
    directory = within / "d"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for name, text in files.items():
        (directory / name).write_bytes(encoded(without_last_backslash(text)))
    paths = ordered([("d", os.listdir(directory))])
    config = parse(ConfFile(path, files[path.removeprefix("d/")]) for path in paths)
    own = cmdline.parse(Path(cmdline.PATH).read_bytes().decode("utf-8", "surrogateescape")).config()
    real = run_kmod("-C", "d", within=within)
    same(merge([config, own]), real)
    return len(real[0]) + len(real[1])


NAMES = st.sampled_from(
    ["a", "foo-bar", "m[a-c]-x", "pci:v0*", "x]y", "x[y", "[-]", "snd_hda", "é", "*", "pre:", "\\[", "a\\-b"]
)
GAPS = st.sampled_from([" ", "  ", "\t", " \t ", " \\\n", "\\\n", "   "])
WORDS = st.one_of(
    NAMES, st.sampled_from(["post:", "pre:", "x=1", "#", "$CMDLINE_OPTS", "\\\\", "\v", "\f", "\r", "\udcff", ";"])
)
DIRECTIVES = st.sampled_from(
    ["alias", "blacklist", "options", "install", "remove", "softdep", "softdep", "include", "config", "Alias", ""]
)
ENDS = st.sampled_from(["\n", "\n", "\n", " \n", "\t\n", "\r\n", "\\\n", "\n\n", "\0\n", "\n#", "\n # "])


@st.composite
def statements(draw: st.DrawFn) -> str:
    parts = [draw(DIRECTIVES)]
    for _ in range(draw(st.integers(0, 7))):
        parts += [draw(GAPS), draw(WORDS)]
    return "".join([*parts, draw(ENDS)])


TEXTS = st.one_of(
    st.lists(statements(), max_size=12).map("".join),
    st.text(st.sampled_from("ab-_[]#\\\n\t \0:=*?.\"'\r\x7f\udc80é"), max_size=60),
)
FILE_NAMES = st.sampled_from(
    ["a.conf", "B.conf", "a-b.conf", "a.b.conf", ".h.conf", "c.conf~", "é.conf", "no", "10.conf"]
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("conf")


@pytest.mark.property
@pytest.mark.differential
@pytest.mark.timeout(120)
def test_drawn_files(place: Path) -> None:
    """`modprobe -C d -c`: the same bytes from both, complaints included; and it says how much was compared."""
    seen = {"files": 0, "bytes": 0}

    @settings(max_examples=DRAWN)
    @given(files=st.dictionaries(FILE_NAMES, TEXTS, min_size=1, max_size=3))
    @example(files={"a.conf": "softdep a  pre: b\nsoftdep b pre: c post: d pre: e\nblacklist x\\"})
    def compare(files: dict[str, str]) -> None:
        seen["files"] += len(files)
        seen["bytes"] += compare_files(files, place)

    compare()
    assert seen["files"] >= DRAWN
    assert seen["bytes"] >= 10_000


@pytest.mark.differential
def test_a_changed_byte_is_noticed(place: Path) -> None:
    """The comparison is no formality."""
    (place / "x.conf").write_text("options a b=1\n")
    real = run_kmod("-C", "x.conf", within=place)
    with pytest.raises(AssertionError):
        same(parse([ConfFile("x.conf", "options a b=2\n")]), real)


@pytest.mark.differential
def test_single_files_and_directories(place: Path) -> None:
    """`-C` thrice: the first of two files with one base name counts, and the order is that of the base names."""
    for name, text in {
        "p/z.txt": "blacklist z",
        "q/a.x": "blacklist a",
        "r/z.txt": "blacklist no",
        "s/m.conf": "bad\n",
    }.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(text)
    real = run_kmod("-C", "p/z.txt", "-C", "q/a.x", "-C", "s", "-C", "r/z.txt", within=place)
    paths = ordered(["p/z.txt", "q/a.x", ("s", ["m.conf"]), "r/z.txt"])
    own = cmdline.parse(Path(cmdline.PATH).read_text()).config()
    same(merge([parse(ConfFile(path, (place / path).read_text()) for path in paths), own]), real)


@pytest.mark.differential
def test_weakdep_is_the_one_difference(place: Path) -> None:
    """kmod 30, of Debian 12, calls it a bad line, kmod 33 and later know it; so DIRECTIVES above do without."""
    (place / "w.conf").write_text("weakdep a b\n")
    version = subprocess.run([kmod_path(), "--version"], capture_output=True, text=True, check=True).stdout.split()[2]
    refused = b"ignoring bad line starting with 'weakdep'" in run_kmod("-C", "w.conf", within=place)[1]
    assert refused == (int(version.partition(".")[0]) < 33), version


PIECES = st.sampled_from([
    *'ab.=" \t\n\v\f\r,[]é\x1c\xa0\udcff', "b-c", ".", "=", '"', " ", "--", "modprobe", "modprobe.blacklist=", "x.y=",
    ' "x.y=', " z.w", " m[a-b]-c.d=1", " a.b=1 ",
])  # fmt: skip
LONG = st.integers(4060, 4095).map(lambda length: "x" * length + ' a.b="é x" c.d=1')
"""Kmod's buffer ends somewhere in the last words."""


@pytest.mark.property
@pytest.mark.differential
@pytest.mark.root
@pytest.mark.timeout(120)
@settings(max_examples=120)
@given(text=st.one_of(st.lists(PIECES, max_size=40).map("".join), LONG))
def test_drawn_command_lines(place: Path, text: str) -> None:
    """The same bytes for a /proc/cmdline of our own, laid over the real one in a mount namespace."""
    path = place / "cmdline"
    path.write_bytes(encoded(text))
    same(cmdline.parse(text).config(), run_kmod("-C", "/nonexistent", within=place, command_line=path))


@pytest.mark.differential
@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*/*modules*")), ids=lambda path: path.parent.name)
def test_converted_files_are_accepted(path: Path, place: Path) -> None:
    """modprobe reads the result of `kmodd convert-config` without a complaint, and as kmodd does."""
    text = convert(ConfFile(str(path), path.read_text())).text
    (place / "converted").write_text(text)
    real = run_kmod("-C", "converted", within=place)
    assert real[1] == b""
    own = cmdline.parse(Path(cmdline.PATH).read_text()).config()
    same(merge([parse([ConfFile("converted", text)]), own]), real)
