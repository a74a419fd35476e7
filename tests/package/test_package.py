"""The Debian package on machines of each suite: built, installed, upgraded, removed, purged.

/sbin/modprobe is called throughout, and what purge leaves is compared with the machine before.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import kmodd
from tests.installation import ROOT, make
from tests.package.chroots import CALLING, INSTALL, LISTED, Machine, build_script, copy_sources

pytestmark = [pytest.mark.differential, pytest.mark.root, pytest.mark.timeout(1800)]

Make = Callable[[], Machine]

COMPILED = """
import glob, importlib.util as util, os, sys
sources = glob.glob("/usr/lib/kmodd/**/*.py", recursive=True)
missing = [name for name in sources if not os.path.exists(util.cache_from_source(name))]
print("compiled", len(sources) > 80, missing, *glob.glob("/usr/lib/kmodd/byte-code.*"), sys.implementation.cache_tag)
"""
"""Python: whether each source has byte code, and the file with that of all."""


def test_the_changelog_has_the_version() -> None:
    first = (ROOT / "debian/changelog").read_text().splitlines()[0]
    assert first.startswith(f"kmodd ({kmodd.__version__}) ")


@pytest.mark.long
def test_two_builds_are_the_same_bytes(builder: Machine, tmp_path: Path) -> None:
    """The second one of sources with other times and modes; of other sources, the control, it differs."""
    builder.run("cd /mnt/source && find . -exec touch --date=2001-02-03 {} + && chmod -R go-rwx .")
    builder.run(build_script("again"))
    packages = [builder.shared / f"{name}.deb" for name in ("kmodd", "again")]
    first, second = (hashlib.sha256(path.read_bytes()).hexdigest() for path in packages)
    assert first == second
    changed = Machine(builder.system, tmp_path / "machine", tmp_path / "shared")
    changed.shared.mkdir()
    copy_sources(changed.shared / "source")
    (changed.shared / "source/README.md").write_text("another\n")
    changed.run(build_script("kmodd"))
    assert hashlib.sha256((changed.shared / "kmodd.deb").read_bytes()).hexdigest() != first


def test_lintian_finds_no_errors(builder: Machine) -> None:
    """Without its overrides it does."""
    command = "lintian --allow-root --fail-on error /mnt/kmodd.deb"
    builder.run(command)
    assert "E: kmodd: statically-linked-binary" in builder.run(f"{command} --no-override", expect=2)


@pytest.mark.suites
def test_install_upgrade_remove_and_purge(bare: Make) -> None:
    """Of both packages; modprobe works at every moment, and purge leaves the machine as it was."""
    said = bare().run(
        f"""
        {LISTED}
        snapshot >/tmp/before
        {CALLING}
        {INSTALL}
        snapshot >/tmp/installed
        grep -c '^/usr/sbin/modprobe.kmod l' /tmp/installed
        ls /etc/systemd/system/*.wants | grep -c kmodd || echo disabled
        /usr/lib/kmodd/bin/modprobe --version
        python3 -c '{COMPILED}'
        {INSTALL}
        apt-get -qq update && apt-get -qq install --reinstall -y kmod >/dev/null 2>&1
        snapshot | diff /tmp/installed -
        dpkg --remove kmodd >/tmp/log 2>&1
        [ ! -e /usr/lib/kmodd ] && [ -e /etc/bash_completion.d/kmodd ]
        {INSTALL}
        dpkg --purge kmodd >/tmp/log 2>&1
        called
        snapshot | diff /tmp/before -
        """
    )
    lines = said.splitlines()
    assert "disabled" in lines
    tag = re.search(r"compiled True \[\] /usr/lib/kmodd/byte-code\.(\S+) (\S+)$", said, re.MULTILINE)
    assert tag, said
    assert tag[1] == tag[2]
    assert int(lines[-1]) > 20, "calls of modprobe"


def test_the_caller_sees_a_missing_modprobe(bare: Make) -> None:
    """Control of the test above."""
    until_seen = "until [ -e /tmp/failed ]; do sleep 0.1; done"
    said = bare().run(
        f"{CALLING} mv /usr/sbin/modprobe /tmp/m; {until_seen}; mv /tmp/m /usr/sbin/modprobe; called", expect=1
    )
    assert "not found" in said


def test_it_replaces_make_install(bare: Make) -> None:
    """Files that the package does not have go, byte code is compiled for its sources, and purge leaves none."""
    machine = bare()
    (machine.folder / "upper").mkdir(parents=True)
    make("install", f"DESTDIR={machine.folder / 'upper'}")
    old = machine.folder / "upper/usr/lib/kmodd"
    (old / "kmodd/gone.py").touch()
    (old / "manifest").write_text((old / "manifest").read_text() + "/usr/lib/kmodd/kmodd/gone.py\n")
    (machine.folder / "upper/etc/bash_completion.d/kmodd").write_text("# of another version\n")
    machine.run(
        f"""
        {CALLING}
        kmodd --version
        {INSTALL}
        kmodd --version
        [ ! -e /usr/lib/kmodd/manifest ] && [ ! -e /usr/lib/kmodd/kmodd/gone.py ]
        dpkg --verify kmodd
        dpkg --purge kmodd >/tmp/log 2>&1
        [ ! -e /usr/lib/kmodd ] && [ ! -e /usr/bin/kmodd ] && [ ! -e /etc/bash_completion.d/kmodd ]
        called
        """
    )


def test_a_foreign_diversion_is_not_touched(bare: Make) -> None:
    said = bare().run(
        f"""
        dpkg-divert --local --no-rename --divert /usr/sbin/modprobe.mine --add /usr/sbin/modprobe
        {INSTALL}
        """,
        expect=1,
    )
    assert (
        "Failed to take over /usr/sbin/modprobe: it is diverted by the administrator to /usr/sbin/modprobe.mine" in said
    )


def test_a_new_python_gets_byte_code_of_its_own(bare: Make) -> None:
    """By the hooks that Debian's python3 runs when it replaces another one; the control is that one's file."""
    said = bare().run(
        f"""
        {INSTALL}
        lint() {{ kmodd lint --kernel none 2>/dev/null | grep -o 'not of Python' || echo fresh; }}
        cd /usr/lib/kmodd
        mv byte-code.* byte-code.cpython-310
        find . -name '*.pyc' -delete
        lint
        for hook in /usr/share/python3/runtime.d/*.rtupdate; do
            $hook rtupdate python3.10 "python$(python3 -c 'import sys; print(*sys.version_info[:2], sep=".")')"
        done
        lint
        python3 -c '{COMPILED}'
        """
    )
    lines = said.splitlines()
    assert lines[:2] == ["not of Python", "fresh"], said
    tag = re.fullmatch(r"compiled True \[\] /usr/lib/kmodd/byte-code\.(\S+) (\S+)", lines[-1])
    assert tag, said
    assert tag[1] == tag[2]


def test_an_initrd_has_kmods_own_program(bare: Make) -> None:
    """By initramfs-tools, byte for byte the initrd of a machine without kmodd; the control is one without our hook."""
    said = bare().run(
        f"""
        mkdir -p /usr/lib/modules/1.2.3 /boot
        touch /usr/lib/modules/1.2.3/modules.builtin /usr/lib/modules/1.2.3/modules.order
        echo CONFIG_RD_GZIP=y >/boot/config-1.2.3
        depmod 1.2.3 2>/dev/null
        made() {{
            rm -rf /tmp/made && mkinitramfs -o /tmp/initrd 1.2.3 >/tmp/log 2>&1 && unmkinitramfs /tmp/initrd /tmp/made
            (cd /tmp/made && find . -name modprobe -printf '%p %l ' -exec sha256sum {{}} +)
            sha256sum /tmp/made/usr/bin/kmod
        }}
        made >/tmp/kmods
        {INSTALL}
        made >/tmp/ours
        diff /tmp/kmods /tmp/ours && echo same
        chmod a-x /usr/share/initramfs-tools/hooks/kmodd
        made | diff /tmp/kmods - || echo other
        """
    )
    assert said.splitlines()[0] == "same", said
    assert said.splitlines()[-1] == "other", said


def test_apt_installs_it_on_a_bare_system(bare: Make) -> None:
    """With what it depends on, from the suite's mirror."""
    bare().run(
        """
        dpkg --purge --force-depends python3-pyudev python3-systemd python3-pyelftools >/dev/null 2>&1
        apt-get -qq update
        apt-get -qq install -y --no-install-recommends /mnt/kmodd.deb >/tmp/log 2>&1 || { cat /tmp/log; exit 1; }
        kmodd --version
        apt-get -qq purge -y kmodd >/tmp/log 2>&1
        """
    )
