"""Install lines that run themselves again."""

from __future__ import annotations

import pytest

from kmodd.config.modprobe_d import ConfFile, parse
from kmodd.index.catalog import Catalog, Snapshot
from kmodd.index.layer import Layer
from kmodd.planning.lint import Setup, lint

PATH = "/etc/modprobe.d/x.conf"
DEPENDENCIES = b"a.ko:\nsnd-x.ko:\n"


def findings(text: str) -> list[str]:
    catalog = Catalog([Layer("/lib/modules/6.1.0", lambda name: DEPENDENCIES if name == "modules.dep" else None)])
    return [str(finding) for finding in lint(Setup(Snapshot(catalog, parse([ConfFile(PATH, text)]))))]


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("a", "modprobe a"),
        ("a", "/sbin/modprobe a $CMDLINE_OPTS; /usr/bin/logger a"),
        ("a", "/usr/bin/logger a && exec modprobe -q a"),
        ("a", "if true; then modprobe 'a'; fi"),
        ("a", "modprobe -C /etc/x.conf a"),
        ("a", "modprobe -a snd_x a"),
        ("snd_x", "modprobe snd-x"),
        ("snd-*", "modprobe snd_x"),
    ],
)
def test_a_command_that_loads_its_own_module_by_name_runs_itself(name: str, command: str) -> None:
    (finding,) = findings(f"install {name} {command}\n")
    assert finding.startswith(f"{PATH}:1: error: install command of {name.replace('-', '_')} runs modprobe ")
    assert finding.endswith("which runs the command again; add --ignore-install [command]")


@pytest.mark.parametrize(
    "command",
    [
        "modprobe --ignore-install a $CMDLINE_OPTS",
        "modprobe -i a",
        "modprobe -qi a",
        "modprobe snd_x",
        "modprobe snd_x a=1",
        "modprobe -r a",
        "modprobe -n a",
        "insmod /lib/a.ko",
        "echo modprobe a",
        "modprobe snd_x # modprobe a",
        "modprobe a[",
    ],
)
def test_other_commands_do_not(command: str) -> None:
    assert findings(f"install a {command}\n") == []
