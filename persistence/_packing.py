"""Large results made small, and whole again.  Pure: bytes in, bytes out.

What compressed a result is read off its first bytes, so a store may change its compression at any time.
"""

from __future__ import annotations

import zlib
from importlib import import_module
from typing import Any, Final, Literal, TypeAlias

Compression: TypeAlias = Literal["gzip", "zstd"]

COMPRESSIONS: Final = ("gzip", "zstd")
#: The first bytes of each format.  https://www.rfc-editor.org/rfc/rfc1952#section-2.3.1, https://www.rfc-editor.org/rfc/rfc8878#section-3.1.1
GZIP_MAGIC: Final = b"\x1f\x8b"
ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
#: zlib's notation of a gzip header and trailer, whose checksum is then verified.
GZIP_WBITS: Final = zlib.MAX_WBITS | 16


class CompressionMissingError(Exception):
    """The result can be read with a module that is not installed here."""


class UnreadableResultError(ValueError):
    """The stored bytes are no result: cut, altered, or larger than allowed."""


def compress(body: bytes, compression: Compression) -> bytes:
    """The body, smaller.  The same body always gives the same bytes."""
    if compression == "zstd":
        compressed: bytes = zstd().compress(body)
        return compressed
    compressor = zlib.compressobj(wbits=GZIP_WBITS)
    return compressor.compress(body) + compressor.flush()


def is_compressed(body: bytes) -> bool:
    """Whether the body begins like one of `compress`.  JSON never does."""
    return body.startswith((GZIP_MAGIC, ZSTD_MAGIC))


def decompress(body: bytes, at_most: int) -> bytes:
    """The body as it was before `compress`.  No more than *at_most* bytes, and one to notice it by, are ever produced.

    Raises:
        UnreadableResultError: the bytes are not compressed, were cut or altered, or hold more than *at_most*.
        CompressionMissingError: zstd is not installed.
    """
    if body.startswith(GZIP_MAGIC):
        return _all(zlib.decompressobj(GZIP_WBITS), body, at_most, zlib.error)
    if body.startswith(ZSTD_MAGIC):
        return _all(zstd().ZstdDecompressor(), body, at_most, zstd().ZstdError)
    raise UnreadableResultError("its stored result was not compressed by this library")


def zstd() -> Any:
    """The interpreter's zstd module, else that of the extra.

    Raises:
        CompressionMissingError: there is neither.
    """
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return import_module(name)
        except ModuleNotFoundError:
            continue
    raise CompressionMissingError(
        "compression='zstd' needs Python 3.14 or later, or the extra: pip install 'lambda-idempotency[zstd]'"
    )


def _all(decompressor: Any, body: bytes, at_most: int, failure: type[Exception]) -> bytes:
    try:
        whole: bytes = decompressor.decompress(body, at_most + 1)
    except failure:
        raise UnreadableResultError("its stored result was altered") from None
    if len(whole) > at_most:
        raise UnreadableResultError(f"its stored result has more than max_result_bytes={at_most} bytes")
    if not decompressor.eof:
        raise UnreadableResultError("its stored result was cut off")
    return whole
