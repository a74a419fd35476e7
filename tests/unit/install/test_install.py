"""`make install` and `make uninstall`, the kernel's helper, units, catalogue and the script that hides udevd's rule."""

from __future__ import annotations

import importlib.util
import marshal
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import CodeType

import pytest

import kmodd
from kmodd.cli.__main__ import TOOLS
from kmodd.planning import record

ROOT = Path(__file__).parents[3]
PYTHON = "/usr/bin/python3"
UNITS = (
    "kmodd.service", "kmodd-loader.socket", "kmodd-loader@.service", "kmodd-restore-udev.service",
    "kmodd-stack.socket", "kmodd-stack@.service",
)  # fmt: skip
NO_NETWORK = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]


def run(command: Sequence[str | Path], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C"} | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def make(*words: str, expect: int = 0) -> str:
    """Run make; without network where the kernel lets us."""
    offline = NO_NETWORK if run([*NO_NETWORK, "true"]).returncode == 0 else []
    done = run([*offline, "make", *words])
    assert done.returncode == expect, done.stdout
    return done.stdout


def listing(folder: Path) -> set[str]:
    """Everything below `folder` as the manifest writes it: folders end in a slash."""
    return {f"/{path.relative_to(folder)}{'/' if path.is_dir() else ''}" for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Installed below DESTDIR, as for a package or an image."""
    folder = tmp_path_factory.mktemp("image")
    make("install", f"DESTDIR={folder}", "PREFIX=/usr")
    return folder


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Installed so that it runs where it lies."""
    folder = tmp_path_factory.mktemp("prefix") / "usr"
    make("install", f"PREFIX={folder}")
    return folder


# ── files ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_manifest_lists_exactly_what_was_placed(image: Path) -> None:
    assert set((image / "usr/lib/kmodd/manifest").read_text().splitlines()) == listing(image)


def test_everything_has_its_place(image: Path) -> None:
    expected = {f"/usr/lib/systemd/system/{unit}" for unit in UNITS} | {
        "/usr/bin/kmodd",
        "/usr/lib/kmodd/udev-rule",
        "/usr/lib/kmodd/stack",
        "/usr/lib/kmodd/kernel-helper",
        "/usr/lib/kmodd/kmodd-request",
        "/usr/lib/kmodd/varlink/server.py",
        "/usr/lib/kmodd/inotify_simple.py",
        "/usr/lib/kmodd/licenses/varlink/LICENSE.txt",
        "/usr/lib/kmodd/licenses/inotify_simple/LICENSE",
        "/usr/lib/systemd/catalog/kmodd.catalog",
        "/usr/lib/systemd/system/systemd-modules-load.service.d/kmodd.conf",
        "/usr/share/doc/kmodd/README.md",
        "/usr/share/doc/kmodd/explain.schema.json",
        "/etc/bash_completion.d/kmodd",
        "/usr/share/zsh/vendor-completions/_kmodd-tools",
        "/usr/share/fish/vendor_completions.d/modprobe.fish",
        "/usr/share/initramfs-tools/hooks/kmodd",
        *(f"/usr/lib/kmodd/bin/{tool}" for tool in TOOLS),
        *(f"/usr/share/kmodd/policy.d/{path.name}" for path in (ROOT / "data/policy.d").iterdir()),
        "/usr/share/doc/kmodd/POLICY.md",
    }
    sources = {
        f"/usr/lib/kmodd/{path.relative_to(ROOT)}" for path in (ROOT / "kmodd").rglob("*.*") if path.suffix != ".pyc"
    }
    assert expected | sources <= listing(image)
    assert not [path for path in listing(image) if "/tests/" in path]


def test_modes(image: Path) -> None:
    programs = {f"/usr/lib/kmodd/{name}" for name in ("udev-rule", "kernel-helper", "kmodd-request", "stack")}
    programs = {f"/usr/lib/kmodd/{name}" for name in ("udev-rule", "stack", "kernel-helper", "kmodd-request")}
    programs |= {"/usr/bin/kmodd", "/usr/share/initramfs-tools/hooks/kmodd"}
    for path in listing(image):
        if (image / path[1:]).is_symlink():
            continue
        mode = (image / path[1:]).stat().st_mode & 0o7777
        assert mode == (0o755 if path.endswith("/") or path in programs else 0o644), path


def test_links_lead_to_installed_files(image: Path) -> None:
    links = [path for path in image.rglob("*") if path.is_symlink()]
    assert {path.name for path in links if path.parent.name == "bin"} == set(TOOLS)
    assert not [path for path in links if os.path.isabs(os.readlink(path)) or not path.exists()]


def test_the_name_a_tool_is_called_by_picks_it(prefix: Path) -> None:
    for tool in ("modprobe", "insmod", "rmmod"):
        done = run([prefix / "lib/kmodd/bin" / tool, "-V"])
        assert (done.returncode, done.stdout.splitlines()[0]) == (0, "kmod version 30"), tool


def test_uninstall_leaves_nothing(tmp_path: Path) -> None:
    make("install", f"DESTDIR={tmp_path}")
    assert listing(tmp_path)
    make("uninstall", f"DESTDIR={tmp_path}")
    assert listing(tmp_path) == set()


def test_uninstall_leaves_what_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "usr/lib/systemd/system").mkdir(parents=True)
    other = tmp_path / "usr/bin/other"
    for _ in range(2):  # the second time over the first
        make("install", f"DESTDIR={tmp_path}")
    other.touch()
    make("uninstall", f"DESTDIR={tmp_path}")
    assert listing(tmp_path) == {
        "/usr/", "/usr/bin/", "/usr/bin/other", "/usr/lib/", "/usr/lib/systemd/", "/usr/lib/systemd/system/",
    }  # fmt: skip


def test_a_new_installation_removes_what_the_old_one_had_more(tmp_path: Path) -> None:
    make("install", f"DESTDIR={tmp_path}")
    manifest = tmp_path / "usr/lib/kmodd/manifest"
    gone = tmp_path / "usr/lib/kmodd/kmodd/gone/old.py"
    gone.parent.mkdir()
    gone.touch()
    manifest.write_text(manifest.read_text() + "/usr/lib/kmodd/kmodd/gone/\n/usr/lib/kmodd/kmodd/gone/old.py\n")
    make("install", f"DESTDIR={tmp_path}")
    assert not gone.parent.exists()
    assert set(manifest.read_text().splitlines()) == listing(tmp_path)


def test_uninstall_without_an_installation_says_so(tmp_path: Path) -> None:
    assert "not installed" in make("uninstall", f"DESTDIR={tmp_path}", expect=2)


def test_a_wheel_that_is_not_the_pinned_one_is_refused(tmp_path: Path) -> None:
    """make runs in a copy of the checkout in which one byte was appended to the wheel."""
    copy = tmp_path / "checkout"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "tests", "fixtures", "__pycache__"))
    with next((copy / "vendor").glob("*.whl")).open("ab") as wheel:
        wheel.write(b"x")
    done = run(["make", "-C", copy, "install", f"DESTDIR={tmp_path / 'image'}"])
    assert done.returncode != 0
    assert "not the file that vendor/requirements.txt pins" in done.stdout
    assert not (tmp_path / "image").exists()


# ── byte code and launcher ─────────────────────────────────────────────────────────────────────────────────────────


def test_byte_code_is_there_valid_and_names_the_final_path(image: Path) -> None:
    sources = list((image / "usr/lib/kmodd").rglob("*.py"))
    assert len(sources) > 20
    for source in sources:
        data = Path(importlib.util.cache_from_source(str(source))).read_bytes()
        assert data[:4] == importlib.util.MAGIC_NUMBER
        assert int.from_bytes(data[4:8], "little") == 0b11, "checked by the hash of its source"
        assert data[8:16] == importlib.util.source_hash(source.read_bytes())
        code = marshal.loads(data[16:])
        assert isinstance(code, CodeType)
        assert code.co_filename == f"/{source.relative_to(image)}"


def test_the_launcher_runs_and_uses_the_byte_code(prefix: Path) -> None:
    done = run([prefix / "bin/kmodd", "--version"])
    assert (done.returncode, done.stdout) == (0, f"kmodd {kmodd.__version__}\n")
    shebang = (prefix / "bin/kmodd").read_text().splitlines()[0]
    traced = run(["strace", "-f", "-e", "trace=%file", prefix / "bin/kmodd", "--version"]).stdout
    opened = re.findall(r'openat\(AT_FDCWD, "([^"]+)", [^)]*\) = \d', traced)
    ours = [name for name in opened if name.startswith(f"{prefix}/lib/kmodd/kmodd/")]
    compiled = [name for name in ours if name.endswith(".pyc")]
    assert shebang == f"#!{PYTHON} -BISXutf8"
    assert f"{prefix}/lib/kmodd/kmodd/cli/__pycache__/__main__.cpython-" in " ".join(compiled)
    assert not re.search(r"O_(WRONLY|RDWR|CREAT)[^\n]*lib/kmodd", traced)
    # Nobody else's start-up code: no .pth file, no sitecustomize.
    assert not [name for name in opened if name.endswith(".pth") or "sitecustomize" in name or "/site.cpython" in name]


def test_the_environment_cannot_change_what_is_imported(prefix: Path, tmp_path: Path) -> None:
    (tmp_path / "kmodd.py").write_text("raise SystemExit('hijacked')")
    done = run([prefix / "bin/kmodd", "--version"], PYTHONPATH=str(tmp_path), PYTHONHOME=str(tmp_path))
    assert done.stdout == f"kmodd {kmodd.__version__}\n"


def test_the_distributions_modules_and_the_vendored_ones_are_within_reach(prefix: Path) -> None:
    launcher = (prefix / "bin/kmodd").read_text()
    paths = "".join(line + "\n" for line in launcher.splitlines() if line.startswith(("import sys", "sys.path")))
    code = paths + (
        "import pyudev, systemd.daemon, elftools, varlink, inotify_simple\n"
        "print(varlink.__file__, inotify_simple.__file__)"
    )
    done = run([PYTHON, "-BISXutf8", "-c", code])
    assert done.stdout == f"{prefix}/lib/kmodd/varlink/__init__.py {prefix}/lib/kmodd/inotify_simple.py\n"


def test_bytes_that_are_not_utf8_pass_unchanged(prefix: Path) -> None:
    """`lookup` gives the alias back exactly as given, in any locale."""
    launcher = (prefix / "bin/kmodd").read_text().splitlines()[0].removeprefix(f"#!{PYTHON} ")
    for locale in ("C", "C.UTF-8", "POSIX"):
        done = subprocess.run(
            [PYTHON, launcher, "-c", "import sys; print(sys.argv[1], sys.stdin.read())", b"a\xff"],
            input=b"b\xfe",
            capture_output=True,
            env={"LC_ALL": locale},
        )
        assert done.stdout == b"a\xff b\xfe\n", done.stderr


# ── the kernel's helper ────────────────────────────────────────────────────────────────────────────────────────────


def test_the_kernels_helper_is_one_static_file_and_the_same_each_time(image: Path, prefix: Path) -> None:
    helper = image / "usr/lib/kmodd/kmodd-request"
    headers = run(["readelf", "--program-headers", "--wide", helper]).stdout
    assert "LOAD" in headers
    assert "INTERP" not in headers
    assert helper.read_bytes() == (prefix / "lib/kmodd/kmodd-request").read_bytes()


def test_without_a_compiler_the_kernels_helper_is_python(tmp_path: Path) -> None:
    """It runs with no file open, as the kernel starts it, and a call that is not the kernel's makes it modprobe."""
    said = make("install", f"PREFIX={tmp_path}/usr", "CC=no-such-compiler")
    assert "kmodd-request is a Python script" in said
    helper = tmp_path / "usr/lib/kmodd/kmodd-request"
    traced = tmp_path / "traced"
    command = ["strace", "-f", "-e", "trace=execve", "-o", str(traced), str(helper), "--version"]
    done = subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command], env={"PATH": os.environ["PATH"]})
    became = re.findall(r'execve\("/s?bin/modprobe", \["modprobe", "--version"\].* = 0', traced.read_text())
    assert (done.returncode, len(became)) == (0, 1), traced.read_text()


# ── units and catalogue ────────────────────────────────────────────────────────────────────────────────────────────


def test_units_follow_the_prefix(prefix: Path) -> None:
    for unit in UNITS:
        text = (prefix / "lib/systemd/system" / unit).read_text().replace(str(prefix), "")
        assert "/usr/bin/kmodd" not in text
        assert "/usr/lib/kmodd" not in text
    assert f"ExecStart={prefix}/bin/kmodd run\n" in (prefix / "lib/systemd/system/kmodd.service").read_text()


@pytest.fixture
def machine(image: Path, tmp_path: Path) -> Path:
    """A tree with the distribution's units and kmodd's, kmodd enabled; for the offline checks of systemd-analyze."""
    machine = tmp_path / "machine"
    shutil.copytree(image, machine)
    units = machine / "usr/lib/systemd/system"
    shutil.copytree("/usr/lib/systemd/system", units, symlinks=True, dirs_exist_ok=True)
    wants = machine / "etc/systemd/system/sysinit.target.wants"
    wants.mkdir(parents=True)
    (wants / "kmodd.service").symlink_to("/usr/lib/systemd/system/kmodd.service")
    (machine / "bin").mkdir()
    for program in ("sh", "rm"):
        shutil.copy(f"/bin/{program}", machine / "bin")
    return machine


def test_systemd_has_nothing_to_say_about_the_units(machine: Path) -> None:
    done = run(["systemd-analyze", "verify", "--man=no", f"--root={machine}", *UNITS])
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(("extra", "cycle"), [("", False), ("After=sysinit.target\n", True)])
def test_the_boot_with_kmodd_has_no_ordering_cycle(machine: Path, extra: str, cycle: bool) -> None:
    unit = machine / "usr/lib/systemd/system/kmodd.service"
    unit.write_text(unit.read_text().replace("[Unit]\n", f"[Unit]\n{extra}", 1))
    done = run(["systemd-analyze", "verify", "--man=no", f"--root={machine}", "sysinit.target", "kmodd.service"])
    assert ("ordering cycle" in done.stdout) == cycle, done.stdout


def test_the_daemon_cannot_load_and_a_lane_can_do_little_else() -> None:
    daemon = (ROOT / "systemd/kmodd.service").read_text()
    lane = (ROOT / "systemd/kmodd-loader@.service").read_text()
    assert "\nCapabilityBoundingSet=CAP_NET_ADMIN CAP_SYSLOG CAP_SYS_PTRACE\n" in daemon
    assert "@module" not in daemon
    assert "\nCapabilityBoundingSet=CAP_SYS_MODULE CAP_NET_ADMIN\n" in lane


@pytest.mark.parametrize(
    ("unit", "most"), [("kmodd.service", 3.0), ("kmodd-loader@x.service", 3.0), ("kmodd-stack@x.service", 3.0)]
)
def test_the_sandbox_stays_as_tight_as_it_is(machine: Path, unit: str, most: float) -> None:
    done = run(["systemd-analyze", "security", "--offline=yes", "--no-pager", f"--root={machine}", unit])
    level = re.search(r"Overall exposure level for \S+: (\d+\.\d)", done.stdout)
    assert level, done.stdout
    assert float(level[1]) <= most


def test_every_kind_of_record_is_explained(image: Path) -> None:
    (image / "var/lib/systemd/catalog").mkdir(parents=True, exist_ok=True)
    try:
        done = run(["journalctl", f"--root={image}", "--update-catalog"])
        assert done.returncode == 0, done.stdout
        explained = re.findall(
            r"^([0-9a-f]{32}) kmodd: ", run(["journalctl", f"--root={image}", "--list-catalog"]).stdout, re.MULTILINE
        )
    finally:
        shutil.rmtree(image / "var")
    known = {value for value in vars(record).values() if isinstance(value, str) and re.fullmatch("[0-9a-f]{32}", value)}
    known |= {record.PREFIX + number for number, _ in record.KINDS.values()}
    assert set(explained) == known
    assert len(explained) == len(known)


def test_the_catalogue_is_wrapped_and_each_entry_is_whole() -> None:
    text = (ROOT / "systemd/kmodd.catalog").read_text()
    for entry in text.split("\n-- ")[1:]:
        head, _, body = entry.partition("\n\n")
        assert re.fullmatch(
            r"[0-9a-f]{32}\nSubject: .+\nDefined-By: kmodd\nDocumentation: file:///usr/share/doc/kmodd/.+", head
        )
        assert body.strip()
        assert max(len(line) for line in body.splitlines()) <= 76


# ── udev-rule ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Rule:
    """`systemd/udev-rule` in a made-up root, with made-up `systemctl` and `udevadm`; calls of the latter are kept."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.link = self.root / "run/udev/rules.d/80-drivers.rules"
        self.mark = self.root / "run/kmodd/udev-rule-masked"
        self.calls = folder / "calls"
        self._programs = folder / "bin"
        self._programs.mkdir()
        self._states = {"systemd-udevd.service": "active", "kmodd.service": "failed"}
        self._program("udevadm", f'echo "$@" >> {self.calls}\n')
        self.state("systemd-udevd.service", "active")

    def _program(self, name: str, text: str) -> None:
        path = self._programs / name
        path.write_text(f"#!/bin/sh\n{text}")
        path.chmod(0o755)

    def state(self, unit: str, state: str) -> None:
        """From now on `unit` is in `state`."""
        self._states[unit] = state
        cases = "".join(f"{unit}) echo {state} ;;\n" for unit, state in self._states.items())
        self._program("systemctl", f"case $2 in\n{cases}esac\n")

    def __call__(self, verb: str, expect: int = 0) -> str:
        path = f"{self._programs}:{os.environ['PATH']}"
        done = run([ROOT / "systemd/udev-rule", verb], PATH=path, KMODD_ROOT=str(self.root))
        assert done.returncode == expect, done.stdout
        return done.stdout

    def called(self) -> list[str]:
        """How udevadm was called since the last time."""
        calls = self.calls.read_text().splitlines() if self.calls.exists() else []
        self.calls.unlink(missing_ok=True)
        return calls


@pytest.fixture
def rule(tmp_path: Path) -> Rule:
    return Rule(tmp_path)


RELOAD = "control --reload --timeout=5"


def test_mask_and_unmask(rule: Rule) -> None:
    assert rule("mask") == ""
    assert os.readlink(rule.link) == "/dev/null"
    assert rule.called() == [RELOAD]
    assert rule("unmask") == ""
    assert not os.path.lexists(rule.link)
    assert not rule.mark.exists()
    assert rule.called() == [RELOAD]


def test_mask_twice_as_after_a_crash_is_the_same(rule: Rule) -> None:
    rule("mask")
    assert rule("mask") == ""
    rule("unmask")
    assert not os.path.lexists(rule.link)


@pytest.mark.parametrize("target", ["/dev/null", "/etc/own.rules", None])
def test_somebody_elses_rule_stays(rule: Rule, target: str | None) -> None:
    rule.link.parent.mkdir(parents=True)
    if target:
        rule.link.symlink_to(target)
    else:
        rule.link.write_text("own\n")
    assert "not kmodd's" in rule("mask")
    rule("unmask")
    assert os.readlink(rule.link) == target if target else rule.link.read_text() == "own\n"
    assert rule.called() == []


def test_a_rule_that_replaced_ours_stays(rule: Rule) -> None:
    rule("mask")
    rule.link.unlink()
    rule.link.write_text("own\n")
    rule("unmask")
    assert rule.link.read_text() == "own\n"


def test_an_administrators_rule_that_outranks_the_mask_is_told(rule: Rule) -> None:
    own = rule.root / "etc/udev/rules.d/80-drivers.rules"
    own.parent.mkdir(parents=True)
    own.touch()
    assert "outranks" in rule("mask")
    assert os.readlink(rule.link) == "/dev/null"


@pytest.mark.parametrize("state", ["inactive", "deactivating", "failed"])
def test_a_udevd_that_does_not_run_is_not_waited_for(rule: Rule, state: str) -> None:
    """At boot it starts after kmodd, and its control socket would take the message and never answer."""
    rule.state("systemd-udevd.service", state)
    rule("mask")
    rule("unmask")
    assert rule.called() == []


def test_unmask_without_a_mask_does_nothing(rule: Rule) -> None:
    rule("unmask")
    assert rule.called() == []


COMPAT = """# needed for old tape drivers
SUBSYSTEM=="scsi", ENV{DEVTYPE}=="scsi_device", TEST!="[module/sg]", RUN{builtin}+="kmod load sg"

KERNEL=="nvram", GROUP="kmem", MODE="0640"
"""


def compat(rule: Rule) -> Path:
    """Debian's file with a load line among others; the answer is where a copy of it would stand."""
    file = rule.root / "usr/lib/udev/rules.d/80-debian-compat.rules"
    file.parent.mkdir(parents=True)
    file.write_text(COMPAT)
    return rule.root / "run/udev/rules.d/80-debian-compat.rules"


def test_a_load_line_among_others_is_hidden_and_the_others_stay(rule: Rule) -> None:
    copy = compat(rule)
    rule("mask")
    assert 'KERNEL=="nvram", GROUP="kmem", MODE="0640"' in copy.read_text()
    assert "kmod load" not in copy.read_text()
    rule("mask")
    rule("unmask")
    assert not copy.exists()


@pytest.mark.parametrize("folder", ["etc", "run"])
def test_an_administrators_copy_stays(rule: Rule, folder: str) -> None:
    copy = compat(rule)
    own = rule.root / folder / "udev/rules.d/80-debian-compat.rules"
    own.parent.mkdir(parents=True)
    own.write_text("own\n")
    rule("mask")
    rule("unmask")
    assert own.read_text() == "own\n"
    assert copy.exists() is (folder == "run")


def test_restore_replays_the_devices(rule: Rule) -> None:
    rule("mask")
    rule.called()
    assert "udevd loads modules" in rule("restore")
    assert not os.path.lexists(rule.link)
    assert rule.called() == [RELOAD, "trigger --type=all --action=add"]


def test_restore_leaves_a_kmodd_alone_that_came_back(rule: Rule) -> None:
    rule("mask")
    rule.called()
    rule.state("kmodd.service", "active")
    assert "nothing to restore" in rule("restore")
    assert os.readlink(rule.link) == "/dev/null"
    assert rule.called() == []


def test_wrong_usage(rule: Rule) -> None:
    assert "usage" in rule("explode", expect=2)
