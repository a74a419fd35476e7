"""dpkg is killed while it installs, upgrades, removes and purges kmodd, and while it upgrades kmod beneath it.

/sbin/modprobe is called throughout, also between the kill and the call of dpkg that completes the work.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests import suites
from tests.package.chroots import CALLING, INSTALL, LISTED, Machine

pytestmark = [pytest.mark.differential, pytest.mark.root, pytest.mark.long, pytest.mark.timeout(6000)]

Make = Callable[[], Machine]

DEBIAN_12 = pytest.param("bookworm", marks=[] if suites.own() == "bookworm" else [pytest.mark.long])

KILLED = """
export DPKG_FORCE=unsafe-io,remove-reinstreq
quiet() { "$@" >/tmp/log 2>&1 || { cat /tmp/log; exit 1; }; }
killed() {
    status=0
    "$@" >/tmp/log 2>&1 || status=$?
    case $status in
        0) return 1 ;;
        137) /sbin/modprobe --version >/dev/null ;;
        *) cat /tmp/log; exit 1 ;;
    esac
}
"""
"""Shell: `killed COMMAND` fails if it was not killed, and ends the script for any other failure."""
STEPS = """
dpkg-deb --raw-extract /mnt/kmodd.deb /tmp/steps
for script in preinst postinst prerm postrm; do
    sed -E -i -e "1a . /tmp/step" -e 's/^( *)(.*(\\|\\||&&) )?(cp|mv|ln|rm|dpkg-divert) /\\1step\\n&/' \\
        /tmp/steps/DEBIAN/$script
done
cat >/tmp/step <<'end'
step() {
    echo >>/tmp/passed
    if [ "$(wc -l </tmp/passed)" = "$(cat /tmp/kill-at)" ]; then kill -KILL $PPID $$; fi
}
end
dpkg-deb --build /tmp/steps /tmp/steps.deb >/dev/null
at() {
    echo "$1" >/tmp/kill-at
    : >/tmp/passed
    shift
    if killed "$@"; then result=0; else result=1; fi
    echo 0 >/tmp/kill-at
    return $result
}
"""
"""Shell: /tmp/steps.deb, whose scripts and dpkg `at N COMMAND` kills before the scripts' Nth change of a file."""
UPGRADE = """
sed 's/ bookworm main/ trixie main/' /etc/apt/sources.list | grep ' trixie main' >/etc/apt/sources.list.d/trixie.list
quiet apt-get -qq update
(cd /tmp && quiet apt-get -qq download kmod/bookworm kmod/trixie libkmod2/bookworm libkmod2/trixie)
quiet apt-get -qq install -y --no-install-recommends libc6/trixie libssl3t64/trixie libzstd1/trixie liblzma5/trixie
old=$(ls /tmp/*kmod*_30*.deb)
new=$(ls /tmp/*kmod*_34*.deb)
"""
"""Shell: Debian 12 with the libraries of Debian 13; the packages of kmod of both."""


def test_dpkg_is_killed_at_each_step_of_the_scripts(bare: Make) -> None:
    """Then it is installed completely, or removed without a trace."""
    said = bare().run(
        f"""
        {LISTED} {KILLED} {STEPS}
        snapshot >/tmp/before
        {CALLING}
        installed() {{ quiet dpkg --install /tmp/steps.deb; [ /usr/sbin/modprobe -ef /usr/lib/kmodd/kmodd-request ]; }}
        purged() {{ quiet dpkg --purge kmodd; snapshot | diff /tmp/before -; }}
        is_odd() {{ [ $(($1 % 2)) = 1 ]; }}
        number=1; while at $number dpkg --install /tmp/steps.deb; do
            is_odd $number || installed
            purged
            number=$((number + 1))
        done; echo "install $number"
        number=1; while at $number dpkg --install /tmp/steps.deb; do
            installed
            number=$((number + 1))
        done; echo "upgrade $number"
        number=1; while at $number dpkg --purge kmodd; do
            is_odd $number || purged
            installed
            number=$((number + 1))
        done; echo "purge $number"
        snapshot | diff /tmp/before -
        called
        """
    )
    steps = {found[1]: int(found[2]) for found in re.finditer(r"^(\w+) (\d+)$", said, re.MULTILINE)}
    assert [name for name, least in {"install": 8, "upgrade": 2, "purge": 8}.items() if steps[name] > least] == [*steps]


def test_dpkg_is_killed_between_unpacked_files(bare: Make) -> None:
    bare().run(
        f"""
        {LISTED} {KILLED}
        snapshot >/tmp/before
        {CALLING}
        for when in 3 90 200; do
            for situation in new upgraded; do
                killed strace -o /tmp/traced -e inject=rename:signal=KILL:when=$when dpkg --install /mnt/kmodd.deb
                {INSTALL}
            done
            quiet dpkg --purge kmodd
            snapshot | diff /tmp/before -
        done
        called
        """
    )


@pytest.mark.parametrize("suite", [DEBIAN_12], indirect=True, scope="module")
def test_dpkg_is_killed_while_it_upgrades_kmod(bare: Make) -> None:
    """Debian 12's kmod to Debian 13's, before each change of modprobe; then it is completed, also without kmodd."""
    said = bare().run(
        f"""
        {LISTED} {KILLED} {UPGRADE}
        quiet dpkg --install $new
        snapshot >/tmp/before
        quiet dpkg --install $old
        {INSTALL} {CALLING}
        paths=
        for name in modprobe modprobe.kmod modprobe.kmod-sbin; do
            for end in "" .dpkg-new .dpkg-tmp; do paths="$paths -P /sbin/$name$end -P /usr/sbin/$name$end"; done
        done
        for change in symlink link rename unlink; do
            number=1
            while killed strace -o /tmp/traced $paths -e inject=$change:signal=KILL:when=$number dpkg --install $new; do
                grep -q "^$change(.*modprobe.* = ?" /tmp/traced && echo "$change $number"
                if [ $number = 1 ]; then
                    quiet dpkg --install $new
                else
                    quiet dpkg --purge kmodd
                    quiet dpkg --install $new
                    snapshot | diff /tmp/before -
                    {INSTALL}
                fi
                quiet dpkg --install $old
                number=$((number + 1))
            done
        done
        called
        """
    )
    assert {"symlink 1", "symlink 2", "rename 1", "unlink 1", "unlink 2"} <= set(said.splitlines())
