"""Parse the signature at the end of a module file, without verifying it: bytes in, `Signature` out.

Format (kernel include/linux/module_signature.h): image; in the old formats signer and key identifier; signature; a
block of 12 bytes; a line of text. A signature that kmod cannot parse is ignored silently, as in kmod.
"""

from __future__ import annotations

from struct import Struct

from kmodd.dataclass import dataclass
from kmodd.errors import ParseError

MAGIC = b"~Module signature appended~\n"
_BLOCK = Struct(">5B3xI")
"""Algorithm, hash, kind of identifier; lengths of signer, key identifier and signature."""
_ALGORITHMS = 2
_HASHES = (b"md4", b"md5", b"sha1", b"rmd160", b"sha256", b"sha384", b"sha512", b"sha224", b"sm3")
_KINDS = (b"PGP", b"X509", b"PKCS#7")

_SEQUENCE, _SET, _INTEGER, _OID, _OCTETS, _OPTIONAL = 0x30, 0x31, 0x02, 0x06, 0x04, 0xA0
"""DER tags; `_OPTIONAL` is the context-specific tag [0] of an optional part."""
_SIGNED_DATA = "1.2.840.113549.1.7.2"
_COMMON_NAME = "2.5.4.3"
_DIGESTS = {
    "1.2.840.113549.2.4": b"md4",
    "1.2.840.113549.2.5": b"md5",
    "1.3.14.3.2.26": b"sha1",
    "1.3.36.3.2.1": b"ripemd160",
    "2.16.840.1.101.3.4.2.1": b"sha256",
    "2.16.840.1.101.3.4.2.2": b"sha384",
    "2.16.840.1.101.3.4.2.3": b"sha512",
    "2.16.840.1.101.3.4.2.4": b"sha224",
    "2.16.840.1.101.3.4.2.5": b"sha512-224",
    "2.16.840.1.101.3.4.2.6": b"sha512-256",
    "2.16.840.1.101.3.4.2.7": b"sha3-224",
    "2.16.840.1.101.3.4.2.8": b"sha3-256",
    "2.16.840.1.101.3.4.2.9": b"sha3-384",
    "2.16.840.1.101.3.4.2.10": b"sha3-512",
    "1.2.156.10197.1.401": b"sm3",
}
"""OpenSSL's names of hash algorithms by OID; for an unknown one, OpenSSL shows the OID itself."""


@dataclass(frozen=True, slots=True)
class Signature:
    """Fields of a signature, as modinfo shows them."""

    kind: bytes
    """`PGP`, `X509` or `PKCS#7`."""
    signer: bytes
    """Name of the signer; PKCS#7: of the certificate's issuer."""
    key: bytes
    """Key identifier; PKCS#7: serial number of the certificate."""
    hash: bytes
    """Name of the hash algorithm."""
    signature: bytes


def parse(data: bytes) -> Signature | None:
    """Return the signature of an uncompressed module file, None without one that kmod can read."""
    if not data.endswith(MAGIC) or len(data) < len(MAGIC) + _BLOCK.size:
        return None
    end = len(data) - len(MAGIC) - _BLOCK.size
    algorithm, digest, kind, signer_length, key_length, length = _BLOCK.unpack_from(data, end)
    if algorithm >= _ALGORITHMS or digest >= len(_HASHES) or kind >= len(_KINDS):
        return None
    if not length or length + signer_length + key_length > end:
        return None
    if _KINDS[kind] == b"PKCS#7":
        try:
            return _pkcs7(data[end - length : end])
        except ParseError:
            return None
    signature_at = end - length
    key_at = signature_at - key_length
    signer = data[key_at - signer_length : key_at]
    return Signature(_KINDS[kind], signer, data[key_at:signature_at], _HASHES[digest], data[signature_at:end])


# ── PKCS#7 ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Value:
    """One DER value: tag and content."""

    tag: int
    body: bytes

    def parts(self) -> list[_Value]:
        """Return the contained values. Raises ParseError."""
        found = []
        at = 0
        while at < len(self.body):
            value, at = _read(self.body, at)
            found.append(value)
        return found


def _read(data: bytes, at: int) -> tuple[_Value, int]:
    """Return the value at offset `at`, and the offset after it. Raises ParseError."""
    if at + 2 > len(data) or data[at] & 0x1F == 0x1F:
        raise ParseError("not the expected ASN.1 structure")
    tag, length = data[at], data[at + 1]
    at += 2
    if length & 0x80:
        count = length & 0x7F
        if not 0 < count <= 4 or at + count > len(data):
            raise ParseError("not the expected ASN.1 structure")
        length = int.from_bytes(data[at : at + count], "big")
        at += count
    if at + length > len(data):
        raise ParseError("not the expected ASN.1 structure")
    return _Value(tag, data[at : at + length]), at + length


def _pkcs7(data: bytes) -> Signature:
    """Return the first signer of a SignedData (RFC 2315, 9.1). Raises ParseError."""
    kind, wrapped = _parts_of(_read(data, 0)[0], _SEQUENCE, (_OID, _OPTIONAL))
    if _oid(kind) != _SIGNED_DATA:
        raise ParseError("not the expected ASN.1 structure")
    (signed,) = wrapped.parts() if len(wrapped.parts()) == 1 else (wrapped,)
    # optional certificates and revocation lists precede the signers
    optional = (_OPTIONAL, _OPTIONAL + 1)
    *_, signers = _parts_of(signed, _SEQUENCE, (_INTEGER, _SET, _SEQUENCE, _SET), optional)
    if not signers.parts():
        raise ParseError("not the expected ASN.1 structure")
    # optional attributes precede the encryption algorithm (authenticated) and follow the signature (unauthenticated)
    wanted = (_INTEGER, _SEQUENCE, _SEQUENCE, _SEQUENCE, _OCTETS)
    _, issued, digest, _, signature = _parts_of(signers.parts()[0], _SEQUENCE, wanted, optional)
    issuer, serial = _parts_of(issued, _SEQUENCE, (_SEQUENCE, _INTEGER))
    algorithm = digest.parts()
    if not algorithm or algorithm[0].tag != _OID:
        raise ParseError("not the expected ASN.1 structure")
    number = abs(int.from_bytes(serial.body, "big", signed=True))
    key = number.to_bytes((number.bit_length() + 7) // 8, "big")
    name = _oid(algorithm[0])
    return Signature(b"PKCS#7", _name(issuer), key, _DIGESTS.get(name, name.encode()), signature.body)


def _parts_of(value: _Value, tag: int, tags: tuple[int, ...], skipped: tuple[int, ...] = ()) -> list[_Value]:
    """Return the values in `value`, without those whose tag is in `skipped`.

    Raises ParseError if `value` is not of `tag`, or the rest not of `tags`, in this order.
    """
    parts = [part for part in value.parts() if part.tag not in skipped]
    if value.tag != tag or tuple(part.tag for part in parts) != tags:
        raise ParseError("not the expected ASN.1 structure")
    return parts


def _name(issuer: _Value) -> bytes:
    """Return the common name of an issuer, or the last part of its name; up to a NUL byte. Raises ParseError."""
    text = b""
    for group in issuer.parts():
        for entry in group.parts():
            match entry.parts():
                case [_Value(tag=0x06) as kind, value]:
                    text = value.body.partition(b"\0")[0]
                    if _oid(kind) == _COMMON_NAME:
                        return text
                case _:
                    raise ParseError("not the expected ASN.1 structure")
    return text


def _oid(value: _Value) -> str:
    """Return an object identifier in dotted notation. Raises ParseError."""
    numbers = []
    number = 0
    for byte in value.body:
        number = number << 7 | byte & 0x7F
        if not byte & 0x80:
            numbers.append(number)
            number = 0
    if not numbers or value.body[-1] & 0x80:
        raise ParseError("not the expected ASN.1 structure")
    first = min(numbers[0] // 40, 2)
    return ".".join(map(str, (first, numbers[0] - 40 * first, *numbers[1:])))
