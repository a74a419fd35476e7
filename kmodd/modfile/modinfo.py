"""Read the fields that `modinfo` shows: an image's bytes in, `Info` out.

Fields keep the order of the image; those of the signature follow, as in kmod (kmod_module_get_info). pyelftools reads
the build ID.
"""

from __future__ import annotations

import errno

from kmodd.dataclass import dataclass
from kmodd.modfile.elf import ElfError, Image
from kmodd.modfile.signature import Signature, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Field = tuple[bytes, bytes]
"""Key and value."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """The `parm` and `parmtype` fields of one parameter."""

    name: bytes
    description: bytes | None = None
    type: bytes | None = None


@dataclass(frozen=True, slots=True)
class Info:
    """Fields, signature and build ID of one module."""

    fields: tuple[Field, ...]
    """Fields of .modinfo, in its order."""
    signature: Signature | None = None
    build_id: bytes = b""
    """Empty: none, or not read."""

    def all_fields(self) -> tuple[Field, ...]:
        """Return the fields, followed by those of the signature, as kmod prints them."""
        signed = self.signature
        if signed is None:
            return self.fields
        return (
            *self.fields,
            (b"sig_id", signed.kind),
            (b"signer", signed.signer),
            (b"sig_key", hexadecimal(signed.key)),
            (b"sig_hashalgo", signed.hash),
            (b"signature", hexadecimal(signed.signature)),
        )


def info(data: bytes, with_build_id: bool = False) -> Info:
    """Parse a module's uncompressed file. Raises ElfError, with ENOENT for an image without .modinfo.

    with_build_id: also read the build ID; importing pyelftools takes four times as long as the rest of modinfo.
    """
    section = Image(data).section(b".modinfo")
    if section is None:
        raise ElfError(errno.ENODATA, "no .modinfo")
    strings = section.lstrip(b"\0")
    texts = [text for text in strings.split(b"\0") if text] if len(strings) > 1 else []
    return Info(tuple(map(field, texts)), parse(data), _build_id(data) if with_build_id else b"")


def field(text: bytes) -> Field:
    """Split a string `KEY=VALUE` at its first `=`."""
    key, _, value = text.partition(b"=")
    return key, value


def hexadecimal(data: bytes) -> bytes:
    """Format bytes as kmod does: `AB:CD`, twenty bytes per line."""
    lines = [data[at : at + 20].hex(":").upper() for at in range(0, len(data), 20)]
    return ":\n\t\t".join(lines).encode()


def parameters(fields: Iterable[Field]) -> tuple[dict[bytes, Parameter], list[Field]]:
    """Return the parameters by name, in order of first appearance; and the `parm` and `parmtype` fields without `:`."""
    found: dict[bytes, Parameter] = {}
    bad = []
    for key, value in fields:
        if key not in (b"parm", b"parmtype"):
            continue
        name, colon, rest = value.partition(b":")
        if not colon:
            bad.append((key, value))
            continue
        before = found.get(name, Parameter(name))
        if key == b"parm":
            found[name] = Parameter(name, rest, before.type)
        else:
            found[name] = Parameter(name, before.description, rest)
    return found, bad


def _build_id(data: bytes) -> bytes:
    """Return the first build ID of a section .note.gnu.build-id, empty if none is readable."""
    from elftools.elf.elffile import ELFFile

    # pyelftools raises many kinds of errors for damaged files
    try:
        file = ELFFile(_Stream(data))
        count = file.num_sections()
    except Exception:
        return b""
    for number in range(1, count):
        try:
            section = file.get_section(number)
            if section.name == ".note.gnu.build-id" and (found := next(_build_ids(section), b"")):
                return found
        except Exception:  # skip unreadable sections
            continue
    return b""


class _Stream:
    """File-like object over bytes, as pyelftools needs it."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        """Set the position relative to start, position or end (whence 0, 1, 2); return the new position."""
        self._at = max(offset + (0, self._at, len(self._data))[whence], 0)
        return self._at

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Read `size` bytes, or all that remain if it is negative."""
        end = len(self._data) if size < 0 else self._at + size
        found = self._data[self._at : end]
        self._at += len(found)
        return found


def _build_ids(section: object) -> Iterator[bytes]:
    from elftools.elf.sections import NoteSection

    if isinstance(section, NoteSection):
        for note in section.iter_notes():
            if note["n_type"] == "NT_GNU_BUILD_ID":
                yield bytes.fromhex(note["n_desc"])
