"""The editor of 05-local.conf: each edit is made once, and lines of others stay as they are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kmodd.config import policy_d
from kmodd.config.modprobe_d import ConfFile
from kmodd.config.policy_d import LOCAL, Condition
from kmodd.kernel.requester import Requester
from kmodd.planning.local_rules import HEADER, Change, denied_to_all, forbid, modprobe_lines, permit
from kmodd.planning.policy import Policy, PolicyQuery

MARK = "by kmodd"
WHOM: dict[str, tuple[Condition, ...]] = {
    "all": (), "33": (Condition("uid", ("33",)),), "x": (Condition("unit", ("x.service",)),),
}  # fmt: skip
FOREIGN = st.text(alphabet=st.sampled_from('ab #=*\\"\n\t\rdeny\0é\x85'), max_size=60).filter(lambda t: MARK not in t)
MODULES = st.sampled_from(["a", "b", "loop"])
EDITS = st.lists(st.tuples(st.booleans(), MODULES, st.sampled_from(sorted(WHOM))), min_size=1, max_size=8)


def edited(text: str, edits: list[tuple[bool, str, str]]) -> str:
    for is_deny, module, whom in edits:
        change = Change(module, WHOM[whom])
        text = forbid(text, change) if is_deny else permit(text, change, needs_rule=True)
    return text


def foreign_of(text: str) -> str:
    """The text without the lines that have the mark, and without the header."""
    lines = text.removeprefix(HEADER).split("\n")
    return "\n".join(line for line in lines if MARK not in line)


@given(FOREIGN | FOREIGN.map(HEADER.__add__), EDITS)
def test_an_edit_made_twice_is_one_and_lines_of_others_stay(text: str, edits: list[tuple[bool, str, str]]) -> None:
    once = edited(text, edits)
    assert edited(once, edits[-1:]) == once
    assert foreign_of(once) == foreign_of(text)
    assert once.startswith(HEADER) or not text.startswith(HEADER) or not foreign_of(text)


@given(FOREIGN, MODULES, st.sampled_from(sorted(WHOM)))
def test_allow_takes_back_what_deny_wrote(text: str, module: str, whom: str) -> None:
    change = Change(module, WHOM[whom])
    assert permit(forbid(text, change), change) == text


@given(EDITS)
def test_the_last_edit_decides(edits: list[tuple[bool, str, str]]) -> None:
    parsed = policy_d.parse([ConfFile(LOCAL, edited("", edits))])
    assert parsed.problems == ()
    is_deny, module, whom = edits[-1]
    asker = Requester(0, "", "", 33, None, "", "x.service", container=False)
    if whom != "x":
        asker = Requester(0, "", "", 33, None, "", "y.service", container=False)
    query = PolicyQuery("request", module, "running", requester=asker)
    assert Policy("off", parsed.rules).judge(query, module).refused == is_deny


@given(FOREIGN, st.lists(MODULES, max_size=3))
def test_lines_of_modprobe_d_come_and_go_as_a_whole(text: str, modules: list[str]) -> None:
    written = modprobe_lines(text, modules)
    assert modprobe_lines(written, modules) == written
    assert modprobe_lines(written, ()) == modprobe_lines(text, ())
    local = edited("", [(True, module, "all") for module in modules])
    assert sorted(denied_to_all(local)) == sorted(set(modules))
