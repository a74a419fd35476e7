"""`kmodd check`: what is found, by planning, with the command that mends it, in each form."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests import program
from tests.rootfs import Said
from tests.world import World


def run(world: World, *words: str) -> Said:
    return program.run(["check", "--root", str(world.root), *words])


def hardening(world: World, *names: str) -> dict[str, str]:
    """Module → what `--benchmark FILE` says of it."""
    file = world.root / "names"
    file.write_text("".join(f"{name}\n" for name in names))
    said = run(world, "--benchmark", str(file), "--json")
    assert b"Traceback" not in said.err
    return {line["subject"]: line["text"] for line in judged(said)}


def judged(said: Said) -> list[dict[str, Any]]:
    lines = map(json.loads, said.out.splitlines())
    return [line for line in lines if line["area"] == "hardening" and "note" not in line]


@pytest.fixture
def kernel(world: World) -> World:
    """With a file system, a protocol, and a driver."""
    world.add_files("hfs", "sctp", "drv")
    aliases = ["alias fs-hfs hfs", "alias net-pf-2-proto-132 sctp", "alias pci:v1d[0-3]sv* drv"]
    world.index(deps=["hfs.ko:", "sctp.ko:", "drv.ko:"], aliases=aliases)
    (world.modules / "modules.builtin").write_text("kernel/fs/udf.ko\n")
    return world


def test_each_way_by_which_a_module_comes_is_planned(kernel: World) -> None:
    """Control: without any configuration all of them come."""
    conf = kernel.root / "etc/modprobe.d/x.conf"
    assert hardening(kernel, "hfs", "drv", "udf", "cramfs") == {
        "hfs": "can be loaded by root (modprobe hfs); processes of root, services, users, containers (fs-hfs)",
        "drv": "can be loaded by root (modprobe drv); devices (pci:v1d[0-3]sv*)",
        "udf": "part of the kernel image: no configuration of modules keeps it out",
        "cramfs": "not in the module tree",
    }
    conf.write_text("blacklist hfs\nblacklist drv\n")
    assert hardening(kernel, "hfs", "drv") == {
        "hfs": "can be loaded by root (modprobe hfs)",
        "drv": "can be loaded by root (modprobe drv)",
    }
    conf.write_text("install hfs /bin/false\ninstall drv /bin/true\n")
    assert hardening(kernel, "hfs", "drv") == {
        "hfs": "blocked at /etc/modprobe.d/x.conf:1 by install /bin/false",
        "drv": "blocked at /etc/modprobe.d/x.conf:2 by install /bin/true",
    }


def test_what_a_search_for_the_line_gets_wrong(kernel: World) -> None:
    """A line in a file that is not read, a command that only looks like one, and a module that is loaded already."""
    folder = kernel.root / "etc/modprobe.d"
    (folder / "cis.conf.bak").write_text("install hfs /bin/false\n")
    assert hardening(kernel, "hfs")["hfs"].startswith("can be loaded by root")
    (folder / "x.conf").write_text("install hfs /sbin/modprobe --ignore-install hfs # /bin/false\n")
    assert hardening(kernel, "hfs")["hfs"].startswith("can be loaded by root")
    (folder / "x.conf").write_text("install sctp /bin/false\n")
    kernel.live("sctp")
    assert hardening(kernel, "sctp") == {"sctp": "loaded now; it is kept out once it is removed"}


def test_a_rule_against_root_keeps_no_user_out(kernel: World) -> None:
    """Each kind of process is judged by its own plan; a denied softdep keeps nothing out."""
    kernel.set_rules("deny origin=operator\ndeny origin=request uid=0 container=no unit=session-*")
    (kernel.root / "etc/kmodd/kmodd.conf").write_text("[Kmodd]\nPolicy=enforce\n")
    assert hardening(kernel, "hfs")["hfs"] == "can be loaded by processes of services, users, containers (fs-hfs)"
    kernel.set_rules("deny origin=request module=drv")
    (kernel.root / "etc/modprobe.d/x.conf").write_text("softdep hfs pre: drv\n")
    assert "processes of root, services, users, containers (fs-hfs)" in hardening(kernel, "hfs")["hfs"]


def test_a_module_that_another_one_brings_is_not_kept_out(kernel: World) -> None:
    """A blacklisted dependency comes with the driver of a device; each alias is tried."""
    kernel.index(
        deps=["drv.ko: hfs.ko", "hfs.ko:", "sctp.ko:"],
        aliases=["alias pci:v1* drv", "alias fs-a hfs", "alias fs-b hfs"],
    )
    (kernel.root / "etc/modprobe.d/x.conf").write_text("blacklist hfs\n")
    assert hardening(kernel, "hfs")["hfs"] == (
        "can be loaded by root (modprobe hfs); devices (pci:v1*, as drv needs it)"
    )
    (kernel.root / "etc/modprobe.d/x.conf").write_text("alias fs-a sctp\n")
    assert "(fs-b)" in hardening(kernel, "hfs")["hfs"]


def test_what_is_not_certain_is_a_finding(kernel: World) -> None:
    """A command that only its name says blocks; one that loads a file of another place; no list of built-in modules."""
    conf = kernel.root / "etc/modprobe.d/x.conf"
    conf.write_text("install hfs /opt/false\ninstall nosuch insmod /opt/nosuch.ko\n")
    found = hardening(kernel, "hfs", "nosuch")
    assert found["hfs"] == "probably blocked, as its name says: install at /etc/modprobe.d/x.conf:1"
    assert found["nosuch"] == (
        "can be loaded by root (modprobe nosuch, install at /etc/modprobe.d/x.conf:2: its effect is not known)"
    )
    (kernel.modules / "modules.builtin").unlink()
    assert hardening(kernel, "cramfs")["cramfs"].endswith("no modules.builtin")
    file = kernel.root / "names"
    file.write_text("# none\n")
    said = run(kernel, "--benchmark", str(file))
    assert (said.status, said.err) == (1, f"kmodd check: benchmark '{file}' names no module\n".encode())


def test_what_no_tree_has_is_met_only_if_it_is_known_as_a_module(kernel: World) -> None:
    """A mistake in a list passed as absent; the control is a name of the benchmarks that the tree lacks."""
    found = hardening(kernel, "cramsf", "freevxfs")
    assert found["cramsf"] == "not in the module tree, and not known as the name of a module"
    assert found["freevxfs"] == "not in the module tree"
    (kernel.root / "names").write_text("cramsf\nfreevxfs\n")
    lines = judged(run(kernel, "--benchmark", str(kernel.root / "names"), "--json"))
    assert [line["met"] for line in lines] == [False, True]


def test_a_closed_kernel_keeps_out_what_is_not_loaded(kernel: World) -> None:
    closed = kernel.root / "proc/sys/kernel/modules_disabled"
    closed.parent.mkdir(parents=True)
    closed.write_text("1\n")
    assert hardening(kernel, "hfs")["hfs"].startswith("kernel.modules_disabled=1 until the next boot; else it can be")


def test_the_policy_has_its_say_only_where_it_is_enforced(kernel: World) -> None:
    kernel.set_rules("deny request=net-pf-* uid=1000-\ndeny origin=request container=yes")
    settings = kernel.root / "etc/kmodd/kmodd.conf"
    for mode, whom in (("enforce", "root, services"), ("observe", "root, services, users, containers")):
        settings.write_text(f"[Kmodd]\nPolicy={mode}\n")
        assert f"processes of {whom} (net-pf-2-proto-132)" in hardening(kernel, "sctp")["sctp"]
    settings.write_text("[Kmodd]\nPolicy=enforce\n")
    kernel.live("sctp")
    assert "processes of root, services (net-pf-2-proto-132)" in hardening(kernel, "sctp")["sctp"]


def test_each_finding_has_a_command_and_the_status_says_so(kernel: World) -> None:
    """Errors of lint are findings, warnings are counted. Control: nothing to find is status 0."""
    assert run(kernel).status == 0
    conf = kernel.root / "etc/modprobe.d/x.conf"
    conf.write_text("blacklist nosuch\n")
    said = run(kernel)
    assert (said.status, said.out.splitlines()[0]) == (0, b"configuration: 1 warning of `kmodd lint`")
    conf.write_text("blacklist nosuch\ninstal hfs /bin/false\n")
    (kernel.root / "names").write_text("hfs\n")
    said = run(kernel, "--benchmark", str(kernel.root / "names"))
    assert said.status == 1
    shown = said.out.decode()
    assert "configuration: 1 warning of `kmodd lint`; 1 finding\n  /etc/modprobe.d/x.conf:2: " in shown
    assert f"      Run: editor +2 {kernel.root}/etc/modprobe.d/x.conf\n" in shown
    assert f"      Run: kmodd deny --root {kernel.root} hfs\n" in shown


def test_the_command_of_a_finding_mends_it(kernel: World) -> None:
    """It is run; it names the root directory, so that it is not for this machine. `cramsf` is a mistake for cramfs."""
    (kernel.root / "names").write_text("hfs\nsctp\ncramsf\n")
    kernel.live("sctp")
    options = ["--benchmark", str(kernel.root / "names"), "--json"]
    for line in judged(run(kernel, *options)):
        assert program.run(line["command"].split()[1:]).status == 0
    kernel.live()
    said = run(kernel, *options)
    assert (said.status, [line["met"] for line in judged(said)]) == (0, [True, True, True])


@pytest.mark.parametrize(("name", "count"), [("cis", 11), ("stig", 8)])
def test_the_benchmarks_say_where_their_names_are_from(kernel: World, name: str, count: int) -> None:
    said = run(kernel, "--benchmark", name).out.decode()
    assert "scap-security-guide 0.1.65, ssg-" in said
    assert f", {count} modules; " in said


def test_a_benchmark_that_is_not_at_hand_is_named(kernel: World) -> None:
    said = run(kernel, "--benchmark", "pci-dss")
    assert said.status == 1
    assert said.err == (
        b"kmodd check: benchmark 'pci-dss' is missing: No such file or directory; expected cis, stig, or a file\n"
    )
    assert b"hardening: not checked, as the benchmark pci-dss is missing\n" in said.out
    note = json.loads(run(kernel, "--benchmark", "pci-dss", "--json").out.splitlines()[0])
    assert note == {"area": "hardening", "note": "not checked, as the benchmark pci-dss is missing"}
    file = kernel.root / "names"
    file.write_text("# a list\ncramfs\nno module\n")
    said = run(kernel, "--benchmark", str(file))
    assert said.err == f"kmodd check: Ignoring invalid line: {file}:3: expected the name of a module\n".encode()
    assert said.status == 0


def test_without_a_module_tree_it_says_so(tmp_path: Path) -> None:
    said = program.run(["check", "--root", str(tmp_path), "--benchmark", "cis"])
    assert said.status == 3
    assert b"hardening: not known without a module tree\n" in said.out


def test_nothing_counts_as_absent_by_a_damaged_index(kernel: World) -> None:
    """Its files are empty after a power cut. Control: with its text, the modules are known."""
    (kernel.root / "names").write_text("hfs\n")
    options = ["--benchmark", str(kernel.root / "names")]
    assert run(kernel, *options).status == 1
    for name, why in (("modules.alias", b"with a damaged index"), ("modules.dep", b"without a module tree")):
        (kernel.modules / name).write_bytes(b"")
        said = run(kernel, *options)
        assert said.status == 3
        assert b"hardening: not known " + why in said.out
        assert f"      Run: depmod -b {kernel.root} 6.1.0-test\n".encode() in said.out


def test_sarif_and_junit_have_each_finding(kernel: World) -> None:
    """Names of files with characters that XML and URIs do not have."""
    (kernel.root / "etc/modprobe.d/a <b>&\x1b.conf").write_text("instal x y\n")
    (kernel.root / "names").write_text("hfs\ncramfs\n")
    options = ["--benchmark", str(kernel.root / "names")]
    log: dict[str, Any] = json.loads(run(kernel, *options, "--sarif").out)
    results = log["runs"][0]["results"]
    assert [each["ruleId"] for each in results] == ["configuration/syntax", "hardening/hfs"]
    place = results[0]["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "file:///etc/modprobe.d/a%20%3Cb%3E%26%1B.conf"
    assert place["region"] == {"startLine": 1}
    assert {rule["id"] for rule in log["runs"][0]["tool"]["driver"]["rules"]} == {each["ruleId"] for each in results}
    suites = ElementTree.fromstring(run(kernel, *options, "--junit").out)
    counts = {suite.get("name"): (suite.get("tests"), suite.get("failures")) for suite in suites}
    assert counts == {"configuration": ("1", "1"), "installation": ("0", "0"), "hardening": ("2", "1")}
    assert [each.text for each in suites.iter("failure")][1] == f"kmodd deny --root {kernel.root} hfs"
    assert run(kernel, "--sarif", "--junit").status == 2
    assert log["runs"][0]["properties"]["notes"][0].startswith("hardening: ")
    (note,) = [each.get("value") for each in suites.iter("property") if "module" in str(each.get("value"))]
    assert note is not None


def test_names_of_files_that_are_not_utf8_break_no_form(kernel: World) -> None:
    """Python writes such bytes as lone surrogates, which other programs refuse."""
    folder = kernel.root / "etc/modprobe.d"
    with open(os.fsencode(folder) + b"/\xff.conf", "w") as file:
        file.write("instal x y\n")
    for form in ("--json", "--sarif", "--junit"):
        out = run(kernel, form).out
        assert b"\\udc" not in out
        out.decode()


def test_a_benchmark_says_its_source_version_and_licence_in_each_form(kernel: World) -> None:
    """The control is a list of one's own, of which only the file is known."""
    known = {
        "title": "DISA STIG for Red Hat Enterprise Linux 8", "source": "ssg-rhel8-xccdf.xml, profile stig",
        "version": "scap-security-guide 0.1.65", "licence": "BSD-3-Clause", "modules": 8,
    }  # fmt: skip
    lines = [json.loads(line) for line in run(kernel, "--benchmark", "stig", "--json").out.splitlines()]
    assert {"area": "hardening", "note": "benchmark", **known} in lines
    log = json.loads(run(kernel, "--benchmark", "stig", "--sarif").out)
    assert log["runs"][0]["properties"]["benchmark"] == known
    (kernel.root / "names").write_text("hfs\n")
    lines = [json.loads(line) for line in run(kernel, "--benchmark", f"{kernel.root}/names", "--json").out.splitlines()]
    (own,) = [line for line in lines if line.get("note") == "benchmark"]
    assert (own["title"], own["version"], own["licence"], own["modules"]) == (f"{kernel.root}/names", None, None, 1)


def test_an_xccdf_file_is_a_benchmark_with_profiles(kernel: World) -> None:
    file = kernel.root / "x.xml"
    rule = '<Rule selected="false" id="xccdf_org.ssgproject.content_rule_kernel_module_{}_disabled"/>'
    rules = rule.format("hfs") + rule.format("sctp")
    chosen = '<select idref="xccdf_org.ssgproject.content_rule_kernel_module_hfs_disabled" selected="true"/>'
    file.write_text(
        f'<Benchmark xmlns="http://checklists.nist.gov/xccdf/1.2"><title>A guide</title><version>7</version>'
        f'<Profile id="xccdf_org.ssgproject.content_profile_cis">{chosen}</Profile>{rules}</Benchmark>'
    )
    said = run(kernel, "--benchmark", str(file)).out.decode()
    assert f"hardening: A guide (7, {file}), 2 modules; 2 findings\n" in said
    lines = judged(run(kernel, "--benchmark", str(file), "--profile", "cis", "--json"))
    assert [line["subject"] for line in lines] == ["hfs"]
    refused = run(kernel, "--benchmark", str(file), "--profile", "pci")
    assert (refused.status, b"it has no profile 'pci': expected one of cis" in refused.err) == (1, True)
    assert run(kernel, "--benchmark", "cis", "--profile", "x").status == 2
    assert run(kernel, "--profile", "x").status == 2


def test_the_command_for_a_file_that_is_not_read_has_it_read(kernel: World) -> None:
    """It is no editor, which does not mend it. After all commands are run there is no finding."""
    folder = kernel.root / "etc/modprobe.d"
    (folder / "a b.txt").write_text("options hfs\n")
    (folder / "gone.conf").symlink_to("/nowhere")
    (folder / "inner").mkdir()
    (folder / "inner/c.conf").write_text("blacklist hfs\n")
    (kernel.root / "etc/modprobe.conf").write_text("blacklist sctp\n")
    lines = [json.loads(line) for line in run(kernel, "--json").out.splitlines()]
    commands = [line["command"] for line in lines if line["area"] == "configuration" and "note" not in line]
    assert len(commands) == 4
    assert not any("editor" in command for command in commands)
    for command in commands:
        subprocess.run(["sh", "-c", command], check=True)
    assert not [line for line in run(kernel, "--json").out.splitlines() if b"not read" in line]
    assert sorted(path.name for path in folder.iterdir()) == ["a b.txt.conf", "c.conf", "local.conf"]


def test_a_root_with_a_blank_is_quoted_in_commands(kernel: World) -> None:
    root = kernel.root.rename(kernel.root.parent / "a root")
    (root / "names").write_text("hfs\n")
    said = program.run(["check", "--root", str(root), "--benchmark", str(root / "names")])
    assert f"      Run: kmodd deny --root '{root}' hfs\n".encode() in said.out
