"""Benchmarks in files: XCCDF and OVAL of others, which may be large, damaged or hostile."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest

from kmodd.host.benchmark_file import BenchmarkError, read_benchmark

PREFIX = "xccdf_org.ssgproject.content"
STREAM = f"""<?xml version="1.0" encoding="utf-8"?>
<ds:data-stream-collection xmlns:ds="http://scap.nist.gov/schema/scap/source/1.2"
 xmlns:x="http://checklists.nist.gov/xccdf/1.2" xmlns:o="http://oval.mitre.org/XMLSchema/oval-definitions-5">
<x:Benchmark id="b"><x:title>Guide to &amp; Security</x:title><x:version update="u">0.1.65</x:version>
<x:Profile id="{PREFIX}_profile_base"><x:title>Base</x:title>
<x:select idref="{PREFIX}_rule_kernel_module_usb-storage_disabled" selected="true"/>
<x:select idref="{PREFIX}_rule_kernel_module_dccp_disabled" selected="true"/></x:Profile>
<x:Profile id="{PREFIX}_profile_more" extends="{PREFIX}_profile_base">
<x:select idref="{PREFIX}_rule_kernel_module_dccp_disabled" selected="false"/>
<x:select idref="{PREFIX}_rule_kernel_module_rds_disabled" selected="true"/></x:Profile>
<x:Group id="g"><x:title>Not this</x:title>
<x:Rule selected="false" id="{PREFIX}_rule_kernel_module_usb-storage_disabled"/>
<x:Rule selected="false" id="{PREFIX}_rule_kernel_module_dccp_disabled"/>
<x:Rule selected="false" id="{PREFIX}_rule_kernel_module_rds_disabled"/>
<x:Rule id="{PREFIX}_rule_kernel_module_ipv6_option_disabled"/><x:Rule id="{PREFIX}_rule_no_direct_root_logins"/>
<x:Rule id="{PREFIX}_rule_kernel_module_../x_disabled"/></x:Group></x:Benchmark>
<o:definition class="compliance" id="oval:ssg-kernel_module_hfs_disabled:def:1" version="1"/>
</ds:data-stream-collection>
"""


def written(folder: Path, text: str | bytes) -> str:
    path = folder / "x.xml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_a_data_stream_has_rules_title_and_version(tmp_path: Path) -> None:
    """Definitions of OVAL do not count where there are rules, nor do rules about parameters."""
    found, problems = read_benchmark(written(tmp_path, STREAM))
    assert (found.modules, problems) == (("usb_storage", "dccp", "rds"), [])
    assert (found.title, found.version, found.source) == ("Guide to & Security", "0.1.65", str(tmp_path / "x.xml"))


def test_a_profile_selects_rules_beside_those_of_its_base(tmp_path: Path) -> None:
    path = written(tmp_path, STREAM)
    assert read_benchmark(path, "base")[0].modules == ("usb_storage", "dccp")
    assert read_benchmark(path, f"{PREFIX}_profile_more")[0].modules == ("usb_storage", "rds")
    with pytest.raises(BenchmarkError, match="expected one of base, more"):
        read_benchmark(path, "cis")
    head = f'<x:Profile id="{PREFIX}_profile_base"'
    circle = STREAM.replace(head, f'{head} extends="{PREFIX}_profile_more"')
    assert read_benchmark(written(tmp_path, circle), "more")[0].modules == ("usb_storage", "rds")


def test_oval_alone_has_definitions(tmp_path: Path) -> None:
    start, end = STREAM.index("<x:Benchmark"), STREAM.index("<o:definition")
    assert read_benchmark(written(tmp_path, STREAM[:start] + STREAM[end:]))[0].modules == ("hfs",)


@pytest.mark.parametrize(
    ("selects", "modules"),
    [
        ("", ("dccp",)),
        ('<select idref="g" selected="false"/>', ()),
        ('<select idref="h" selected="true"/>', ("dccp", "rds")),
        ('<select idref="x_rule_kernel_module_rds_disabled" selected="true"/>', ("dccp",)),
        ('<select idref="x_rule_kernel_module_udf_disabled" selected="true"/>', ("dccp", "udf")),
        ('<select idref="x_rule_kernel_module_dccp_disabled" selected="false"/>', ()),
        ('<select idref="x_rule_kernel_module_hfs_disabled" selected="1"/>', ("dccp", "hfs")),
    ],
)
def test_a_rule_counts_by_itself_and_with_its_groups(tmp_path: Path, selects: str, modules: tuple[str, ...]) -> None:
    """A rule and a group are selected unless they say otherwise. The last one is of a file that tailors another."""
    text = (
        f'<Benchmark><Profile id="p_profile_a">{selects}</Profile>'
        '<Group id="g"><Rule id="x_rule_kernel_module_dccp_disabled"/><Group id="h" selected="false">'
        '<Rule id="x_rule_kernel_module_rds_disabled" selected="true"/></Group>'
        '<Rule id="x_rule_kernel_module_udf_disabled" selected="false"/></Group></Benchmark>'
    )
    path = written(tmp_path, text)
    assert read_benchmark(path, "a")[0].modules == modules
    assert read_benchmark(path)[0].modules == ("dccp", "rds", "udf"), "the control"


@pytest.mark.parametrize("name", ["overlayfs", "nfs_common", "smbfs-common", "udf"])
def test_a_rule_named_by_a_folder_is_about_its_modules(tmp_path: Path, name: str) -> None:
    """In XML and in a list; the control is the name of a module."""
    rule = f'<x><Rule id="kernel_module_{name}_disabled"/></x>'
    found = read_benchmark(written(tmp_path, rule))[0].modules
    assert found == read_benchmark(written(tmp_path, f"{name}\n"))[0].modules
    expected = {
        "overlayfs": ("overlay",), "nfs_common": ("grace", "nfs_acl"), "smbfs-common": ("cifs_arc4", "cifs_md4"),
        "udf": ("udf",),
    }  # fmt: skip
    assert found == expected[name]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_xml_is_known_in_each_encoding_of_unicode(tmp_path: Path, encoding: str) -> None:
    """With a byte order mark and without."""
    name = "UTF-16" if "16" in encoding else "UTF-8"
    text = f'<?xml version="1.0" encoding="{name}"?><x><Rule id="kernel_module_hfs_disabled"/></x>'
    assert read_benchmark(written(tmp_path, text.encode(encoding)))[0].modules == ("hfs",)


def test_a_pipe_is_read() -> None:
    """As the shell gives one for `<(…)`."""
    read_end, write_end = os.pipe()
    try:
        os.write(write_end, b"rds\n")
        os.close(write_end)
        assert read_benchmark(f"/dev/fd/{read_end}")[0].modules == ("rds",)
    finally:
        os.close(read_end)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><x>&b;</x>', "it has a document type"),
        ('<!DOCTYPE x SYSTEM "file:///etc/passwd"><x/>', "it has a document type"),
        ("<x>", "x.xml:1: no element found"),
        ("<x></y>", "x.xml:1: mismatched tag"),
        (b"<x>\xff</x>", "x.xml:1: not well-formed"),
        ("<" + "x" * 5_000_000, "x.xml:1: unclosed token"),
        (
            '<?xml version="1.0" encoding="foo"?><x/>',
            "x.xml:1: expected the encoding UTF-8 or UTF-16: unknown encoding",
        ),
        ('<?xml version="1.0" encoding="cp932"?><x/>', "x.xml:1: expected the encoding UTF-8 or UTF-16: multi-byte"),
        ('<?xml version="1.0" encoding="idna"?><x/>', "x.xml:1: expected the encoding UTF-8 or UTF-16: "),
        ("<a>" * 65, "expected at most 64 elements in one another"),
    ],
    ids=["bomb", "external", "cut", "tags", "bytes", "token", "encoding", "multi-byte", "idna", "depth"],
)
def test_what_is_no_benchmark_is_named(tmp_path: Path, text: str | bytes, why: str) -> None:
    with pytest.raises(BenchmarkError, match=why):
        read_benchmark(written(tmp_path, text))


def test_depth_and_repetition_end(tmp_path: Path) -> None:
    """The control is that the rule behind them is found."""
    rule = '<Rule id="kernel_module_rds_disabled"/>'
    deep = "<a>" * 62 + rule + "</a>" * 62
    title = f"<title>{'t' * 100_000}</title>"
    found, _ = read_benchmark(written(tmp_path, f"<Benchmark>{title}{deep}{rule * 1000}</Benchmark>"))
    assert (found.modules, len(found.title)) == (("rds",), 200)


def test_a_list_has_no_profiles(tmp_path: Path) -> None:
    assert read_benchmark(written(tmp_path, "rds\n"))[0].modules == ("rds",)
    with pytest.raises(BenchmarkError, match="no profiles"):
        read_benchmark(written(tmp_path, "rds\n"), "cis")


def test_profiles_extend_each_other_in_a_short_line(tmp_path: Path) -> None:
    """Each profile of a long one would be compared with all before it."""
    chain = "".join(f'<x:Profile id="p{each}" extends="p{each + 1}"/>' for each in range(70))
    text = STREAM.replace("<x:Group", f"{chain}<x:Group", 1)
    with pytest.raises(BenchmarkError, match="at most 64 profiles"):
        read_benchmark(written(tmp_path, text), "p0")
    assert read_benchmark(written(tmp_path, text), "p20")[0].modules == ()


def test_rules_of_a_group_share_its_levels(tmp_path: Path) -> None:
    """A rule takes no more memory in 60 groups than in one."""
    rules = "".join(f'<x:Rule id="{PREFIX}_rule_kernel_module_m{each}_disabled"/>' for each in range(4000))
    peaks = []
    for depth in (1, 55):
        groups = "<x:Group>" * depth + rules + "</x:Group>" * depth
        path = written(tmp_path, STREAM.replace('<x:Group id="g">', groups + '<x:Group id="g">', 1))
        tracemalloc.start()
        try:
            read_benchmark(path)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < peaks[0] + (1 << 19)


def test_a_file_of_more_than_any_benchmark_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / "x.xml", "wb") as file:
        file.truncate((32 << 20) + 1)
    with pytest.raises(OSError, match="more than 32 MiB"):
        read_benchmark(str(tmp_path / "x.xml"))
