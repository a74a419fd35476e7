"""The fields that `modinfo` shows of a module: an image's bytes in, `Info` out.

pyelftools reads the build-id, for whoever wants it.

The order of fields is that of the image; kmod adds those of the signature at the end (kmod_module_get_info).
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
    """What `parm` and `parmtype` say of one parameter."""

    name: bytes
    description: bytes | None = None
    type: bytes | None = None


@dataclass(frozen=True, slots=True)
class Info:
    """All that is known of one module."""

    fields: tuple[Field, ...]
    """Of .modinfo, in its order."""
    signature: Signature | None = None
    build_id: bytes = b""

    def all_fields(self) -> tuple[Field, ...]:
        """The fields, and those of the signature behind them, as kmod prints them."""
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
    """What a module's (unpacked) file says. Raises ElfError; ENOENT stands for an image without .modinfo.

    The build-id only if wanted: pyelftools takes as long to import as all the rest of a modinfo, four times over.
    """
    section = Image(data).section(b".modinfo")
    if section is None:
        raise ElfError(errno.ENOENT, "no .modinfo")
    strings = section.lstrip(b"\0")
    texts = [text for text in strings.split(b"\0") if text] if len(strings) > 1 else []
    return Info(tuple(map(field, texts)), parse(data), _build_id(data) if with_build_id else b"")


def field(text: bytes) -> Field:
    """A string `KEY=VALUE`."""
    key, _, value = text.partition(b"=")
    return key, value


def hexadecimal(data: bytes) -> bytes:
    """Bytes as kmod shows them: `AB:CD`, twenty on a line."""
    lines = [data[at : at + 20].hex(":").upper() for at in range(0, len(data), 20)]
    return ":\n\t\t".join(lines).encode()


def parameters(fields: Iterable[Field]) -> tuple[dict[bytes, Parameter], list[Field]]:
    """The parameters by name, in the order in which they first appear; and the fields that name none, having no `:`."""
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
    """The first one in a section .note.gnu.build-id; empty where there is none that can be read."""
    from elftools.elf.elffile import ELFFile

    # pyelftools answers damage with many kinds of error
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
        except Exception:  # a section that cannot be read is none
            continue
    return b""


class _Stream:
    """Bytes as the file that pyelftools wants to read."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place, counted from the beginning, from here, or from the end."""
        self._at = max(offset + (0, self._at, len(self._data))[whence], 0)
        return self._at

    def tell(self) -> int:
        """The place."""
        return self._at

    def read(self, size: int = -1) -> bytes:
        """So many bytes, or all that are left."""
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
