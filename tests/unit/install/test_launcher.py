"""The installed program: byte code, launcher, what it imports, the compiled helper."""

from __future__ import annotations

import importlib.util
import marshal
import os
import re
import shutil
import subprocess
from pathlib import Path
from types import CodeType

import kmodd
from tests.installation import PYTHON, make, run


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


def test_no_source_makes_python_warn(image: Path, tmp_path: Path) -> None:
    """Python compiles at the installation, or at each start where the byte code is of another Python."""
    bad = tmp_path / "bad.py"
    bad.write_text(r'"\*"' + "\n")
    compiling = [PYTHON, "-I", "-W", "error", "-m", "compileall", "-q", "-f"]
    assert run([*compiling, bad]).returncode != 0, "control"
    copy = tmp_path / "kmodd"
    shutil.copytree(image / "usr/lib/kmodd", copy)
    assert run([*compiling, copy]).stdout == ""


def test_the_launcher_runs_and_uses_the_byte_code(prefix: Path) -> None:
    done = run([prefix / "bin/kmodd", "--version"])
    assert (done.returncode, done.stdout.split(" (")[0]) == (0, f"kmodd {kmodd.__version__}")
    shebang = (prefix / "bin/kmodd").read_text().splitlines()[0]
    traced = run(["strace", "-f", "-e", "trace=%file", prefix / "bin/kmodd", "--version"]).stdout
    opened = re.findall(r'openat\(AT_FDCWD, "([^"]+)", [^)]*\) = \d', traced)
    ours = [name for name in opened if name.startswith(f"{prefix}/lib/kmodd/kmodd/")]
    compiled = [name for name in ours if name.endswith(".pyc")]
    assert shebang == f"#!{PYTHON} -BISXutf8"
    assert f"{prefix}/lib/kmodd/kmodd/cli/__pycache__/byte_code.cpython-" in " ".join(compiled)
    assert not re.search(r"O_(WRONLY|RDWR|CREAT)[^\n]*lib/kmodd", traced)
    # No foreign start-up code: no .pth file, no sitecustomize.
    assert not [name for name in opened if name.endswith(".pth") or "sitecustomize" in name or "/site.cpython" in name]


def test_the_environment_cannot_change_what_is_imported(prefix: Path, tmp_path: Path) -> None:
    (tmp_path / "kmodd.py").write_text("raise SystemExit('hijacked')")
    done = run([prefix / "bin/kmodd", "--version"], PYTHONPATH=str(tmp_path), PYTHONHOME=str(tmp_path))
    assert done.stdout.startswith(f"kmodd {kmodd.__version__} (")


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


def test_the_kernels_helper_is_one_static_file_and_the_same_each_time(image: Path, prefix: Path) -> None:
    helper = image / "usr/lib/kmodd/kmodd-request"
    headers = run(["readelf", "--program-headers", "--wide", helper]).stdout
    assert "LOAD" in headers
    assert "INTERP" not in headers
    assert helper.read_bytes() == (prefix / "lib/kmodd/kmodd-request").read_bytes()


def test_without_a_compiler_the_kernels_helper_is_python(tmp_path: Path) -> None:
    """It runs without an open file, as the kernel starts it, and executes modprobe for other calls."""
    said = make("install", f"PREFIX={tmp_path}/usr", "CC=no-such-compiler")
    assert "kmodd-request is a Python script" in said
    helper = tmp_path / "usr/lib/kmodd/kmodd-request"
    traced = tmp_path / "traced"
    command = ["strace", "-f", "-e", "trace=execve", "-o", str(traced), str(helper), "--version"]
    done = subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command], env={"PATH": os.environ["PATH"]})
    became = re.findall(r'execve\("/s?bin/modprobe", \["modprobe", "--version"\].* = 0', traced.read_text())
    assert (done.returncode, len(became)) == (0, 1), traced.read_text()
