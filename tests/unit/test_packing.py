"""Compressed results: whole again to the byte, or a clear error, and never more memory than allowed."""

from __future__ import annotations

import gzip
import sys
import zlib
from typing import TYPE_CHECKING, Any

import pytest
from doubles import incompressible

from persistence import _packing
from persistence._packing import CompressionMissingError, UnreadableResultError, compress, decompress, is_compressed

if TYPE_CHECKING:
    from types import ModuleType

COMPRESSIONS = ["gzip", "zstd"]
BODY = ('{"items": [' + "1, " * 5_000 + '"\u65e5"]}').encode()


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("body", [b"", b"{}", BODY, incompressible(100_000).encode()], ids=["empty", "small", "large", "random"])
def test_a_body_is_whole_again(compression: Any, body: bytes) -> None:
    packed = compress(body, compression)

    assert is_compressed(packed)
    assert decompress(packed, len(body)) == body


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_the_same_body_is_compressed_the_same_each_time_and_smaller(compression: Any) -> None:
    assert compress(BODY, compression) == compress(BODY, compression)
    assert 20 * len(compress(BODY, compression)) < len(BODY)


def test_gzip_is_what_every_tool_reads() -> None:
    assert gzip.decompress(compress(BODY, "gzip")) == BODY
    assert decompress(gzip.compress(BODY), len(BODY)) == BODY


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_the_largest_body_allowed_is_read_and_one_byte_more_is_not(compression: Any) -> None:
    packed = compress(BODY, compression)

    assert decompress(packed, len(BODY)) == BODY
    with pytest.raises(UnreadableResultError, match=f"^its stored result has more than max_result_bytes={len(BODY) - 1} bytes$"):
        decompress(packed, len(BODY) - 1)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_bomb_is_not_unpacked(compression: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """256 MB of zeros in less than 300 KB; the decompressor is asked for 1,001 bytes of them."""
    bomb = compress(bytes(256 * 1024 * 1024), compression)
    assert len(bomb) < 300_000
    asked: list[int] = []

    class Counted:
        def __init__(self, real: Any) -> None:
            self.real = real

        def decompress(self, body: bytes, at_most: int) -> bytes:
            asked.append(at_most)
            whole: bytes = self.real.decompress(body, at_most)
            assert len(whole) <= at_most
            return whole

    unpacked = _packing._all
    monkeypatch.setattr(_packing, "_all", lambda real, *rest: unpacked(Counted(real), *rest))
    with pytest.raises(UnreadableResultError, match="max_result_bytes=1000 bytes"):
        decompress(bomb, 1_000)
    assert asked == [1_001]


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_cut_body_is_noticed_wherever_it_was_cut(compression: Any) -> None:
    packed = compress(BODY, compression)

    for length in range(len(packed)):
        with pytest.raises(UnreadableResultError):
            decompress(packed[:length], len(BODY))


def test_an_altered_body_is_noticed_by_gzips_checksum() -> None:
    """Any bit after the header; but for those that fill the last byte up, and mean nothing."""
    body = incompressible(200).encode()
    packed = compress(body, "gzip")
    unnoticed = 0
    for bit in range(10 * 8, len(packed) * 8):
        altered = bytearray(packed)
        altered[bit // 8] ^= 1 << bit % 8
        try:
            assert decompress(bytes(altered), 1_000) == body
        except UnreadableResultError:
            continue
        unnoticed += 1
    assert unnoticed < 8


def test_what_is_not_compressed_is_refused() -> None:
    with pytest.raises(UnreadableResultError, match="^its stored result was not compressed by this library$"):
        decompress(b'{"a": 1}', 1_000)


def test_gzip_with_a_bad_header_is_altered() -> None:
    with pytest.raises(UnreadableResultError, match="^its stored result was altered$"):
        decompress(b"\x1f\x8b\xff" + zlib.compress(b"{}"), 1_000)


def test_zstd_comes_from_the_interpreter_before_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def imported(name: str) -> ModuleType:
        asked.append(name)
        if len(asked) == 1:
            raise ModuleNotFoundError(name=name)
        return sys

    monkeypatch.setattr(_packing, "import_module", imported)

    assert _packing.zstd() is sys
    assert asked == ["compression.zstd", "backports.zstd"]


def test_without_zstd_a_result_in_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = compress(BODY, "zstd")

    def imported(name: str) -> ModuleType:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(_packing, "import_module", imported)
    with pytest.raises(CompressionMissingError, match=r"Python 3.14 or later.*pip install 'lambda-idempotency\[zstd\]'$"):
        decompress(packed, len(BODY))


def test_gzip_needs_no_zstd(monkeypatch: pytest.MonkeyPatch) -> None:
    def imported(name: str) -> ModuleType:
        raise AssertionError(name)

    monkeypatch.setattr(_packing, "import_module", imported)

    assert decompress(compress(BODY, "gzip"), len(BODY)) == BODY
