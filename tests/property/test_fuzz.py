"""A short round of fuzzing for each parser: a value or the documented error, whatever the bytes.

By coverage where atheris is installed, in a process of its own; else hypothesis damages the corpus, as the test's name
says. `make fuzz` is the long round.
"""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.__main__ import NAMES, unfinished
from tests.fuzz.targets import TARGETS, Target

pytestmark = pytest.mark.property

ROOT = Path(__file__).parents[2]
HAS_ATHERIS = importlib.util.find_spec("atheris") is not None
ROUND = ("-runs=5000", "-max_total_time=2", "-timeout=10", "-max_len=4096")


def damaged(corpus: tuple[bytes, ...]) -> st.SearchStrategy[bytes]:
    """A case of the corpus with parts exchanged, cut off or repeated; or any bytes."""
    cut = st.tuples(st.sampled_from(corpus), st.integers(0, 4096), st.integers(0, 64), st.binary(max_size=64))
    exchanged = cut.map(lambda each: each[0][: each[1]] + each[3] + each[0][each[1] + each[2] :])
    return st.sampled_from(corpus) | st.binary(max_size=200) | exchanged


@pytest.mark.parametrize("name", [f"{each} by {'coverage' if HAS_ATHERIS else 'hypothesis'}" for each in TARGETS])
def test_a_parser_gives_a_value_or_its_error(name: str, tmp_path: Path) -> None:
    name = name.partition(" ")[0]
    target = TARGETS[name]
    for case in target.corpus:
        target.run(case)
    if not HAS_ATHERIS:
        replay(target)
        return
    command = [sys.executable, "-m", "tests.fuzz.one", name, *ROUND, f"-seed={os.environ['KMODD_SEED']}"]
    command += [f"-artifact_prefix={tmp_path}/", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    assert done.returncode == 0, done.stdout[-4000:]


def replay(target: Target) -> None:
    @settings(max_examples=200)
    @given(damaged(target.corpus))
    def attempt(data: bytes) -> None:
        target.run(data)

    attempt()


@pytest.mark.parametrize("fault", [IndexError, RecursionError])
def test_another_error_is_noticed(fault: type[Exception]) -> None:
    """The control: a parser that raises what it does not document for some bytes."""

    def parse(data: bytes) -> None:
        if b"x" in data:
            raise fault

    with pytest.raises(fault):
        replay(Target(parse, (b"axb",)))


def test_each_corpus_has_a_case_that_is_accepted() -> None:
    """Else only the way to the error would be fuzzed."""
    for target in TARGETS.values():
        target.parse(target.corpus[0])


def test_a_long_round_goes_on_with_what_has_not_had_its_time() -> None:
    """A short round before it, `--seconds 60`, is not taken for it."""
    one, short, failed, *others = NAMES
    rows = {name: {"seconds": 601, "failed": ""} for name in others[:-1]}
    rows |= {short: {"seconds": 61, "failed": ""}, failed: {"seconds": 601, "failed": "a case"}}
    assert unfinished(rows, 600) == [one, short, failed, others[-1]]
    assert unfinished(rows, 60) == [one, failed, others[-1]]
    assert unfinished({}, 600) == list(NAMES)


@pytest.mark.parametrize("flaw", ["", "line", "invariant"])
def test_the_helper_ends_with_a_status_whatever_it_gets(flaw: str, tmp_path: Path) -> None:
    """Under ASan and UBSan, without libFuzzer. The controls: names longer than its line, and an abort, are noticed."""
    program = tmp_path / "helper"
    source = (ROOT / "tests/fuzz/helper.c").read_text()
    if flaw == "line":
        helper = (ROOT / "helper/kmodd-request.c").read_text()
        assert "char line[MAX_SHOWN + 256]" in helper
        (tmp_path / "kmodd-request.c").write_text(helper.replace("char line[MAX_SHOWN + 256]", "char line[256]"))
        source = source.replace("../../helper/kmodd-request.c", str(tmp_path / "kmodd-request.c"))
    elif flaw:
        source = source.replace("if (!(condition)) abort();", "abort();")
    (tmp_path / "helper.c").write_text(source.replace("../../helper", str(ROOT / "helper")))
    words = ["gcc", "-std=gnu11", "-g", "-O1", "-DSTANDALONE", "-fsanitize=address,undefined"]
    subprocess.run([*words, "-fno-sanitize-recover=all", tmp_path / "helper.c", "-o", program], check=True)
    drawn = random.Random(int(os.environ["KMODD_SEED"]))
    cases = [bytes(drawn.choices(range(256), k=drawn.randrange(600))) for _ in range(5000)]
    cases += [bytes((4, 1)) + b"m\0\0\0" + b"x" * 400 + b"\0" + case for case in cases[:1000]]
    text = b"".join(len(case).to_bytes(2, "little") + case for case in cases)
    done = subprocess.run([program], input=text, capture_output=True, check=False)
    if flaw:
        assert done.returncode != 0
    else:
        assert (done.returncode, done.stdout) == (0, b"%d\n" % len(cases)), done.stderr[-3000:]
