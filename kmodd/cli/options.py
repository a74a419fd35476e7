"""Option parser compatible with getopt_long(3): options after operands, `--`, abbreviated names, glibc's messages.

kmod's tools parse their options with glibc; argparse differs in all of these, and its import takes as long as a whole
modprobe. Verbs of kmodd that must start quickly use this parser as well.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


class OptionError(Exception):
    """An invalid option; the text is glibc's message without the program's name."""


class Options:
    """One command line; iterating yields `(code, value)` per option in order, then `operands` holds the rest.

    Iteration raises OptionError at an invalid option, after the options before it have taken effect.
    """

    def __init__(self, argv: list[str], short: str, long: dict[str, str], own: tuple[str, ...] = ()) -> None:
        """Store the command line without parsing it.

        short: letters, each followed by `:` if it takes a value; the code of a short option is its letter.
        long: name → code, followed by `:` if it takes a value. own: names among them that cannot be abbreviated,
        so that options that only kmodd has change no abbreviation of kmod's.
        """
        self.operands: list[str] = []
        self._words = list(argv)
        self._long = long
        self._own = own
        self._short = {}
        for index, letter in enumerate(short):
            if letter != ":":
                self._short[letter] = short[index + 1 : index + 2] == ":"

    def __iter__(self) -> Iterator[tuple[str, str]]:
        while self._words:
            word = self._words.pop(0)
            if word == "--":
                self.operands += self._words
                return
            if word.startswith("--"):
                yield self._long_option(word[2:])
            elif word.startswith("-") and word != "-":
                yield from self._short_options(word[1:])
            else:
                self.operands.append(word)

    def _short_options(self, letters: str) -> Iterator[tuple[str, str]]:
        for index, letter in enumerate(letters):
            if letter not in self._short:
                raise OptionError(f"invalid option -- '{letter}'")
            if not self._short[letter]:
                yield letter, ""
                continue
            value = letters[index + 1 :]
            if not value:
                if not self._words:
                    raise OptionError(f"option requires an argument -- '{letter}'")
                value = self._words.pop(0)
            yield letter, value
            return

    def _long_option(self, word: str) -> tuple[str, str]:
        given, equals, value = word.partition("=")
        name = self._full_name(given, word)
        code = self._long[name]
        takes_value = code.endswith(":")
        if not takes_value:
            if equals:
                raise OptionError(f"option '--{name}' doesn't allow an argument")
            return code, ""
        if not equals:
            if not self._words:
                raise OptionError(f"option '--{name}' requires an argument")
            value = self._words.pop(0)
        return code[:-1], value

    def _full_name(self, given: str, word: str) -> str:
        if given in self._long:
            return given
        matching = [name for name in self._long if name.startswith(given) and name not in self._own]
        if not matching:
            raise OptionError(f"unrecognized option '--{word}'")
        if len({self._long[name] for name in matching}) > 1:
            names = " ".join(f"'--{name}'" for name in matching)
            raise OptionError(f"option '--{word}' is ambiguous; possibilities: {names}")
        return matching[0]
