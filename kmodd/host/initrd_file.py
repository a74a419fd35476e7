"""Read the file of an initial ramdisk or of a unified kernel image."""

from __future__ import annotations

from kmodd.errors import ParseError
from kmodd.host.regular_files import open_regular
from kmodd.modfile.unified_image import read_image

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kmodd.modfile.initrd import Initrd


def read_initrd_file(path: str) -> Initrd:
    """Return the modules in an image. Raises ParseError, with the path and the offset, for whatever is not read."""
    try:
        with open(open_regular(path), "rb") as file:
            return read_image(file)
    except (OSError, ValueError) as error:
        raise ParseError(f"{path}: {error.strerror if isinstance(error, OSError) else error}") from None
    except ParseError as error:
        raise ParseError(f"{path}: {error}") from None
