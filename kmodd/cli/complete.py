"""`kmodd complete WHAT [NAME]`: print completion candidates, one per line, for the files in `data/completions`.

`verbs` are those of kmodd, `options` those of a verb, each followed by a TAB and its text. `modules` and `aliases` are
those of the running kernel's tree, `loaded` those of /proc/modules, `parameters` those of module NAME, as
`PARAMETER=`, and `results` the values of KMODD_RESULT.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

from kmodd.cli.verb import HELP
from kmodd.host.proc_modules import read_loaded
from kmodd.host.tree import Tree
from kmodd.planning.record import KINDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from kmodd.cli.verb import Option, Verb

WHAT = ("verbs", "options", "modules", "aliases", "loaded", "parameters", "results")


def main(argv: list[str]) -> int:
    """Print the candidates and return 0, or 2 for wrong usage."""
    root = ""
    match argv:
        case ["--root", root, *rest]:
            argv = rest
        case _:
            pass
    match argv:
        case ["verbs"]:
            words: Iterable[str] = [f"{verb}\t{text}" for verb, text in verbs().items()]
        case ["options", verb, *more]:
            words = [f"{word}\t{option.text}" for option in options_of(verb, *more) for word in option.words]
        case ["results", *_]:
            words = KINDS
        case ["modules", *_]:
            words = Tree(root).quick_snapshot(like_kmod=True).catalog.names()
        case ["aliases", *_]:
            words = _aliases(Tree(root))
        case ["loaded", *_]:
            words = _loaded(root)
        case ["parameters", name, *_]:
            words = _parameters(name, Tree(root))
        case _:
            print(f"usage: kmodd complete {{{'|'.join(WHAT)}}} [NAME]", file=sys.stderr)
            return 2
    sys.stdout.buffer.write(os.fsencode("".join(f"{word}\n" for word in words)))
    return 0


def verbs() -> dict[str, str]:
    """Return each verb and tool with its line in the help."""
    from kmodd.cli.__main__ import TOOLS, VERBS  # which imports this module

    shown = {verb: text for verb, text in VERBS.items() if text}
    return {**shown, **dict.fromkeys(TOOLS, "as kmod's"), "help": "show the help of a verb"}


def options_of(verb: str, word: str = "") -> list[Option]:
    """Return the options of a verb, or of a word of it (`policy check`); none of an unknown or internal one."""
    from kmodd.cli.__main__ import TOOLS

    if verb not in verbs() or verb in TOOLS or verb == "help":
        return []
    program = import_module(f"kmodd.cli.{verb.replace('-', '_')}")
    declared: Verb = getattr(program, "SUBVERBS", {}).get(word) or program.VERB
    return [*declared.options, HELP]


def _aliases(tree: Tree) -> Iterable[str]:
    """Return the aliases without wildcards, those of the configuration first."""
    snapshot = tree.quick_snapshot(like_kmod=True)
    configured = [alias.pattern for alias in snapshot.config.aliases]
    indexed = [key for key, _ in snapshot.catalog.dump("modules.alias")]
    return dict.fromkeys(word for word in [*configured, *indexed] if not set(word) & set("*?[\\"))


def _loaded(root: str) -> Iterable[str]:
    try:
        return read_loaded(root).modules
    except OSError:
        return ()


def _parameters(name: str, tree: Tree) -> Iterable[str]:
    """Return `PARAMETER=` for each parameter of a module; `name` may also be the path of its file."""
    from kmodd.host.module_reader import read_module
    from kmodd.modfile.elf import ElfError, Image  # needed only here

    line = tree.quick_snapshot(like_kmod=True).catalog.dep(name.replace("-", "_"))
    path = name if line is None else line.path
    try:
        texts = Image(read_module(tree.real(path))).modinfo()
    except (OSError, ElfError):
        return ()
    types = [text.partition(b"=")[2] for text in texts if text.startswith((b"parmtype=", b"parm="))]
    return dict.fromkeys(os.fsdecode(text.partition(b":")[0]) + "=" for text in types)
