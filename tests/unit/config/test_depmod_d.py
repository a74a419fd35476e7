"""depmod.d(5): directives, precedence, and the POSIX regular expressions of kernel versions."""

from __future__ import annotations

import ctypes

import pytest

from kmodd.config.depmod_d import DepmodConfig, kernel_matches, parse, wins
from kmodd.config.modprobe_d import ConfFile


def test_configuration() -> None:
    text = "search a built-in\n#search x\n\nsearch b\\\n c\noverride m 6 sub\noverride n 5 s\nexternal * /e\n"
    text += "exclude x y\nfoo\n"
    config = parse([ConfFile("/f", text)], "6.1")
    assert config == DepmodConfig(
        ("a", "built-in", "b", "c"), ("sub/m",), ("/e",), ("x", "y"), ("/f:10: ignoring bad line starting with 'foo'",)
    )
    assert parse([], "6.1").search == ("updates",)


def test_which_file_wins() -> None:
    plain = DepmodConfig()
    assert wins(plain, "/d", "m", "/d/updates/m.ko", "/d/kernel/m.ko")
    assert not wins(plain, "/d", "m", "/d/kernel/m.ko", "/d/updates/m.ko")
    assert not wins(plain, "/d", "m", "/d/extra/m.ko", "/d/kernel/m.ko")
    override = DepmodConfig(overrides=("kernel/m",))
    assert wins(override, "/d", "m", "/d/kernel/m.ko.xz", "/d/updates/m.ko")
    outside = DepmodConfig(search=("external", "updates"), externals=("/e",))
    assert wins(outside, "/d", "m", "/e/m.ko", "/d/updates/m.ko")


class _Regex(ctypes.Structure):
    _fields_ = [("room", ctypes.c_char * 256)]


def c_library_matches(pattern: str, text: str) -> bool:
    """Match an extended regular expression with regcomp(3) and regexec(3)."""
    library = ctypes.CDLL(None)
    compiled = _Regex()
    if library.regcomp(ctypes.byref(compiled), pattern.encode(), 1 | 8):
        return False
    status = library.regexec(ctypes.byref(compiled), text.encode(), 0, None, 0)
    library.regfree(ctypes.byref(compiled))
    return bool(status == 0)


PATTERNS = r"""
    6 ^6 ^6$ 6.1 6\.1 ^6\.1\.0-[0-9]+ (5|6)\.1 [[:digit:]]+$ [^6] [[:alpha:]]*-amd64 6.1.* .*amd64 ^.*$ x? (x)?6 a|6
    []6] [^]6] [6-] [a-f0-9.]* \w+ 6{1} 6{1,2}\. (6 6) [6 [[:foo:]] * + ?6 ^* a**6 6*+ 6+? 6?? \ 6\ [z-a] (|6) () [.]
    6$x $ ^ \.1\. [[.6.]] [[=6=]] [[.period.]]1 [[.-.]] [[.a.]-c] (^6) (6$|4$) 6) ) (6)) a)|6 )* \<6 \> 6\> \1
    (6)\1 (6)\10 (6\1) \`6 6\' 6{,2}
    6{2 {6 6| |6 6||x (6|) [[:digit:][:alpha:]] [\d] \d [^\] 6\{1\} 6{0} [z [] [!6] [--/] ^^6 (6 \n
    """.split()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_kernel_versions_match_as_in_c(pattern: str) -> None:
    for release in ("6.1.0-56-amd64", "5.10.0-1-cloud", "66", "x6", "6)", "", "4"):
        expected = pattern == "*" or c_library_matches(pattern, release)
        assert kernel_matches(pattern, release) == expected, release
