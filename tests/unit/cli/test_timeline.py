"""`kmodd timeline` and `kmodd blame`: a picture that is well-formed and in its bounds, text that fits, objects."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from kmodd.cli import blame, timeline
from kmodd.cli.timeline_svg import MAX_ROWS
from tests import program
from tests.boot_records import Loaded, boot
from tests.journal_files import write_journal

SVG = "{http://www.w3.org/2000/svg}"
PCI = "/devices/pci0000:00"
HOSTILE = "a\x1b]0;x\x07<b>&\"'\u202eb\udcff]]>\n\ufffe"
BOOT = [
    Loaded("ahci", 100, 0, 60, (("libata", 20),), f"{PCI}/0000:00:1f.2", "82801IR SATA"),
    Loaded("nvme", 100, 60, 40, device=f"{PCI}/0000:00:02.0"),
    Loaded("bad", 120, 0, 30, device=f"{PCI}/0000:00:03.0", result="failed"),
]
"""ahci and nvme are what the boot waited for; nvme waited while ahci was loaded."""


def many(number: int) -> list[Loaded]:
    """So many loads in four lanes, their durations drawn."""
    draw = random.Random(number)
    free = [100] * 4
    loads = []
    for device in range(number):
        lane = free.index(min(free))
        begin, took = 100 + min(device, 50), max(int(draw.lognormvariate(3, 1)), 3)
        wait = max(free[lane] - begin, 0)
        needed = (("needed", 1),) * draw.randrange(2)
        loads.append(Loaded(f"m{device}", begin, wait, took, needed, f"{PCI}/d{device}"))
        free[lane] = begin + wait + took
    return loads


def machine(folder: Path, loads: list[Loaded]) -> list[str]:
    """The options for a journal with these loads, which ends with coldplug; it is written once."""
    journal = folder / "journal"
    if not journal.exists():
        done = max((load.begin + load.wait + load.took for load in loads), default=0) + 1
        write_journal(journal, boot(loads, done))
    return ["-D", str(journal), "--root", str(folder)]


def picture(folder: Path, loads: list[Loaded]) -> ElementTree.Element:
    said = program.run(["timeline", *machine(folder, loads)])
    assert (said.status, said.err) == (0, b"")
    return ElementTree.fromstring(said.out)


def texts(svg: ElementTree.Element) -> list[str]:
    return ["".join(element.itertext()) for element in svg.iter(f"{SVG}text")]


@pytest.mark.parametrize("number", [1, 60, 1000])
def test_a_picture_is_in_its_bounds(tmp_path: Path, number: int) -> None:
    svg = picture(tmp_path, many(number))
    _, _, width, height = map(float, svg.attrib["viewBox"].split())
    rectangles = [
        [float(each.attrib[name]) for name in ("x", "y", "width", "height")] for each in svg.iter(f"{SVG}rect")
    ]
    assert all(x >= 0 and y >= 0 and x + w <= width and y + h <= height for x, y, w, h in rectangles)
    assert all(w > 0 and h > 0 for _, _, w, h in rectangles)
    for each in svg.iter(f"{SVG}text"):
        assert 0 <= float(each.attrib["x"]) <= width
        assert 0 < float(each.attrib["y"]) < height
    rows = [text for text in texts(svg) if re.fullmatch(r"m\d+ [\d.]+m?s", text)]
    assert len(rows) == min(number, MAX_ROWS)
    assert any("have no row" in text for text in texts(svg)) == (number > MAX_ROWS)
    assert height < 3200


def test_each_load_has_bars_a_label_and_what_it_is_for(tmp_path: Path) -> None:
    svg = picture(tmp_path, BOOT)
    shown = texts(svg)
    assert {"ahci 60ms", "nvme 40ms", "bad failed 30ms", '0000:00:1f.2 "82801IR SATA"', "0000:00:02.0"} <= set(shown)
    rows = {
        "".join(group.itertext()).split(" ")[0]: [each.attrib["class"] for each in group.iter(f"{SVG}rect")]
        for group in svg.iter(f"{SVG}g")
    }
    assert rows == {"ahci": ["needed", "init"], "nvme": ["wait", "init"], "bad": ["failed"]}
    assert [each.attrib["class"] for each in svg.iter(f"{SVG}rect")].count("band") == 2


def test_a_bar_shows_its_details_under_the_pointer(tmp_path: Path) -> None:
    titles = [each.text or "" for each in picture(tmp_path, BOOT).iter(f"{SVG}title")]
    assert (
        'ahci loaded for 0000:00:1f.2 "82801IR SATA" (coldplug)\ncame at 100ms, waited 0us, took 60ms\n'
        f"libata 20ms, ahci 40ms\n{PCI}/0000:00:1f.2"
    ) in titles


def test_light_and_dark_have_the_same_rules(tmp_path: Path) -> None:
    style = picture(tmp_path, BOOT).findtext(f"{SVG}style") or ""
    light, _, dark = style.partition("@media (prefers-color-scheme: dark) {")
    rules = [
        re.findall(r"^(\S+(?: \S+)?) \{ (?:fill|stroke|paint-order)", text, re.MULTILINE) for text in (light, dark)
    ]
    assert rules[0] == rules[1] != []
    used = {each.attrib["class"].split()[0] for each in picture(tmp_path, BOOT).iter(f"{SVG}rect")}
    assert {f".{kind}" for kind in used} <= set(rules[1]), "each kind of bar has a colour in the dark"


def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    """A name of a device is what the device says of itself."""
    loads = [Loaded(HOSTILE, 100, 0, 10, device=f"{PCI}/{HOSTILE}", name=HOSTILE)]
    for words in (["timeline"], ["timeline", "--text"], ["blame"], ["timeline", "--json"], ["blame", "--json"]):
        said = program.run([*words, *machine(tmp_path, loads)])
        assert (said.status, said.err) == (0, b""), words
        text = said.out.decode("utf-8", "surrogateescape")
        assert [char for char in text if not char.isprintable() and char not in "\n\udcff"] == [], words
    said = program.run(["timeline", *machine(tmp_path, loads)])
    svg = ElementTree.fromstring(said.out)  # UTF-8 and well-formed
    assert any("\\x1b]0;x\\x07<b>&" in text for text in texts(svg))
    shown = program.on_terminal(["blame", *machine(tmp_path, loads)], {"TERM": "dumb"})
    assert b"\x1b" not in shown


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_text_fits_the_terminal(tmp_path: Path, columns: int) -> None:
    options = machine(tmp_path, [*many(60), *BOOT])
    for verb in ("timeline", "blame"):
        shown = program.on_terminal([verb, *options], {"TERM": "dumb", "COLUMNS": str(columns)}).decode()
        assert max(map(len, shown.splitlines())) <= columns
        assert "ahci" in shown


@pytest.mark.parametrize(("columns", "is_shown"), [(40, False), (50, False), (62, False), (63, True), (80, True)])
def test_a_narrow_terminal_has_no_column_of_what_could_go_in_parallel(
    tmp_path: Path, columns: int, is_shown: bool
) -> None:
    """What a module was loaded for is more important, and is not shortened for it."""
    environment = {"TERM": "dumb", "COLUMNS": str(columns)}
    shown = program.on_terminal(["blame", *machine(tmp_path, BOOT)], environment).decode()
    assert ("COULD" in shown) == is_shown
    assert ('0000:00:1f.2 "82801IR SATA"' in shown) == (columns > 40)
    assert "0000:00:1f.2" in shown
    assert max(map(len, shown.splitlines())) <= columns


def test_text_has_a_line_with_bars_for_each_load(tmp_path: Path) -> None:
    said = program.run(["timeline", "--text", *machine(tmp_path, BOOT)]).out.decode()
    lines = [line for line in said.splitlines() if "#" in line and " 0000:" in line]
    shown = {line.split()[-2 if line.endswith('SATA"') else -1]: line for line in lines}
    assert len(lines) == 3
    ahci, bad, nvme = (next(line for line in lines if f" {name} " in line) for name in ("ahci", "bad", "nvme"))
    assert ahci.startswith("* -----")
    assert re.match(r"\* \.{20,}#+ +nvme 40ms  0000:00:02.0$", nvme)
    assert re.match(r"   +#+ +bad failed 30ms  0000:00:03.0$", bad)
    assert shown


def test_a_time_without_loads_is_said_in_place_of_a_mark(tmp_path: Path) -> None:
    device = f"{PCI}/a"
    early, late = Loaded("early", 100, 0, 10, device=device), Loaded("late", 9000, 0, 10, device=f"{device}/b")
    for folder, loads, done, said in (
        ("idle", [early], 60_000, "no load for 59.9s before the end of coldplug"),
        ("between", [early, late], 9011, "no load for 8.9s before late"),
    ):
        options = ["-D", write_journal(tmp_path / folder, boot(loads, done)), "--root", str(tmp_path)]
        lines = program.run(["timeline", "--text", *options]).out.decode().splitlines()
        assert said in lines
        assert any(line.startswith("  ") and "early 10ms" in line for line in lines), "it is not marked"
        assert said in texts(ElementTree.fromstring(program.run(["timeline", *options]).out))
    assert "no load for" not in program.run(["timeline", "--text", *machine(tmp_path, BOOT)]).out.decode()


@pytest.mark.parametrize(("number", "said"), [
    (1, "1 load of at most 10ms has no row; 1 load after coldplug is left out"),
    (2, "2 loads of at most 10ms each have no row; 2 loads after coldplug are left out"),
])  # fmt: skip
def test_what_is_left_out_is_counted(tmp_path: Path, number: int, said: str) -> None:
    early = [Loaded(f"m{each}", 100, 0, 10, device=f"{PCI}/{each}") for each in range(MAX_ROWS + number)]
    late = [Loaded(f"usb{each}", 5000, 0, 10, device=f"{PCI}/usb{each}") for each in range(number)]
    options = ["-D", write_journal(tmp_path / "journal", boot([*early, *late], done=111)), "--root", str(tmp_path)]
    assert said in program.run(["timeline", "--text", *options]).out.decode().splitlines()
    assert said in texts(ElementTree.fromstring(program.run(["timeline", *options]).out))


@pytest.mark.parametrize(("number", "said"), [(1, "1 load"), (2, "2 loads")])
def test_loads_are_counted_until_coldplug_has_ended(tmp_path: Path, number: int, said: str) -> None:
    loads = [Loaded(f"m{each}", 100, 0, 10, device=f"{PCI}/{each}") for each in range(number)]
    options = ["-D", write_journal(tmp_path / "journal", boot(loads)), "--root", str(tmp_path)]
    lines = program.run(["timeline", "--text", *options]).out.decode().splitlines()
    assert lines[1] == f"kernel 6.1.0-test · {said}"


def test_objects_of_the_timeline(tmp_path: Path) -> None:
    said = program.run(["timeline", "--json", *machine(tmp_path, BOOT)])
    ahci, bad, nvme = map(json.loads, said.out.splitlines())
    assert ahci == {
        "module": "ahci", "result": "loaded", "source": "coldplug", "subject": '0000:00:1f.2 "82801IR SATA"',
        "device": f"{PCI}/0000:00:1f.2", "device_name": "82801IR SATA", "begin_usec": 100_000, "start_usec": 100_000,
        "end_usec": 160_000, "inits": [{"module": "libata", "usec": 20_000}, {"module": "ahci", "usec": 40_000}],
        "lane": 0, "awaited": True,
    }  # fmt: skip
    assert (bad["result"], bad["lane"], bad["awaited"]) == ("failed", 1, False)
    assert (nvme["device_name"], nvme["start_usec"]) == (None, 160_000)


def test_blame_has_the_slowest_first_and_what_waited_meanwhile(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in program.run(["blame", "--json", *machine(tmp_path, BOOT)]).out.splitlines()]
    assert [(row["module"], row["usec"] // 1000) for row in rows] == [
        ("ahci", 40), ("nvme", 40), ("bad", 30), ("libata", 20),
    ]  # fmt: skip
    assert rows[0]["parallel"] == [{"module": "nvme", "waited_usec": 40_000}]
    assert [row["for"] for row in rows] == ["ahci", "nvme", "bad", "ahci"]
    table = program.run(["blame", *machine(tmp_path, BOOT)]).out.decode().splitlines()
    assert re.match(r"\*  40ms  ahci +0000:00:1f.2 \"82801IR SATA\" +nvme$", table[1])
    assert re.match(r" +30ms  bad \(failed\)  0000:00:03.0 +nvme$", table[3])
    assert re.match(r"\*  20ms  libata +ahci, for 0000:00:1f.2 ", table[4])


def test_blame_names_three_that_waited(tmp_path: Path) -> None:
    """Objects have all of them."""
    loads = [Loaded(f"m{each}", 100, 50 * each, 50, device=f"{PCI}/{each}") for each in range(6)]
    options = machine(tmp_path, loads)
    lines = program.run(["blame", *options]).out.decode().splitlines()[1:]
    assert [line.split("  ")[-1].strip() for line in lines] == [
        "m1, m2, m3 and more", "m2, m3, m4 and more", "m3, m4, m5", "m4, m5", "m5", "-",
    ]  # fmt: skip
    first = json.loads(program.run(["blame", "--json", *options]).out.splitlines()[0])
    assert [each["module"] for each in first["parallel"]] == ["m1", "m2", "m3", "m4", "m5"]
    assert first["parallel_more"] is False


def test_an_object_of_blame_is_bounded(tmp_path: Path) -> None:
    loads = [Loaded(f"m{each}", 100, 50 * each, 50, device=f"{PCI}/{each}") for each in range(40)]
    rows = list(map(json.loads, program.run(["blame", "--json", *machine(tmp_path, loads)]).out.splitlines()))
    assert (len(rows[0]["parallel"]), rows[0]["parallel_more"]) == (16, True)
    assert len(rows) == 40


def test_blame_leaves_out_what_needs_the_module(tmp_path: Path) -> None:
    """By the module tree of the kernel that the boot had."""
    modules = tmp_path / "lib/modules/6.1.0-test"
    modules.mkdir(parents=True)
    (modules / "modules.alias").write_text("")
    (modules / "modules.dep").write_text("ahci.ko:\nnvme.ko: ahci.ko\n")
    said = program.run(["blame", "--json", *machine(tmp_path, BOOT)])
    assert json.loads(said.out.splitlines()[0])["parallel"] == []


def test_the_last_boot_of_other_journals_is_taken(tmp_path: Path) -> None:
    older = boot([Loaded("old", 0, 0, 5, device=f"{PCI}/a")], number=0)
    directory = write_journal(tmp_path / "journal", [*older, *boot(BOOT)])
    words = ["timeline", "--json", "-D", directory]
    assert [json.loads(line)["module"] for line in program.run(words).out.splitlines()] == ["ahci", "bad", "nvme"]
    assert [json.loads(line)["module"] for line in program.run([*words, "-b", "-1"]).out.splitlines()] == ["old"]


@pytest.mark.parametrize("verb", [timeline, blame], ids=["timeline", "blame"])
def test_without_records_the_answer_is_no(verb: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verb in (timeline, blame)
    main = timeline.main if verb is timeline else blame.main
    assert main(machine(tmp_path, [])) == 1
    assert capsys.readouterr().err.endswith(": no loads of that boot are on record\n")


@pytest.mark.parametrize(("number", "said"), [(1, "1 load after it"), (2, "2 loads after it")])
def test_loads_after_coldplug_alone_are_counted(tmp_path: Path, number: int, said: str) -> None:
    """They are on record, but not of those that are shown."""
    loads = [Loaded(f"usb{each}", 5000, 0, 30, device=f"{PCI}/usb{each}") for each in range(number)]
    options = ["-D", write_journal(tmp_path / "journal", boot(loads, done=200)), "--root", str(tmp_path)]
    for verb in ("timeline", "blame"):
        shown = program.run([verb, *options])
        assert (shown.status, shown.out) == (1, b"")
        assert f": no loads of that boot before the end of coldplug, {said}; `kmodd history`" in shown.err.decode()
