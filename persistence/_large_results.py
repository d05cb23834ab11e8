"""Results that do not fit their record: compressed first, then kept elsewhere.  Small ones pass through untouched."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Final

from persistence._checks import check_object, check_whole_number
from persistence._dynamodb_items import MAX_ITEM_BYTES, ItemFormat
from persistence._packing import (
    COMPRESSIONS,
    CompressionMissingError,
    UnreadableResultError,
    compress,
    decompress,
    is_compressed,
    zstd,
)
from persistence._procedures import Work
from persistence._retries import sending
from persistence.datarecord import OffloadedResult
from persistence.exceptions import IdempotencyPersistenceConfigError, IdempotencyResultNotKeptError

if TYPE_CHECKING:
    from persistence._packing import Compression
    from persistence._procedures import Procedure
    from persistence._retries import Retries
    from persistence.datarecord import DataRecord
    from persistence.offload import ResultOffload

#: Of the 400 KB that an item may have; the rest is for attributes that are not the library's.
ITEM_SIZE_THRESHOLD: Final = 350 * 1024
#: The least threshold that makes sense: a record without a result has some 300 bytes.
LEAST_THRESHOLD: Final = 1024
#: More than a synchronous invocation may answer (6 MB), and little enough for a small function's memory.
#: https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html
MAX_RESULT_BYTES: Final = 32 * 1024 * 1024
#: Both keys at their limits, and the rest of a record under long names: an item that is smaller by this need not be measured.
MOST_OF_THE_REST: Final = 4 * 1024
#: Left of a deadline when an upload is given up, for the record to be completed without it.
UPLOAD_RESERVE_MS: Final = 1_000


class LargeResults:
    """How one store keeps results that are too large.

    Raises:
        ValueError: a limit or the name of a compression makes no sense.
        IdempotencyPersistenceConfigError: the compression is not installed.
    """

    def __init__(
        self,
        items: ItemFormat,
        *,
        compression: Compression | None,
        item_size_threshold: int,
        max_result_bytes: int,
        offload: ResultOffload | None,
    ) -> None:
        if compression is not None and compression not in COMPRESSIONS:
            raise ValueError(f"compression must be 'gzip', 'zstd' or None, not {compression!r}")
        check_whole_number("item_size_threshold", item_size_threshold, LEAST_THRESHOLD, MAX_ITEM_BYTES, "bytes")
        check_whole_number("max_result_bytes", max_result_bytes, 1)
        if offload is not None:
            check_object("result_offload", offload, "an object such as S3ResultOffload(...)", ("put", "get"))
        if compression == "zstd":
            try:
                zstd()
            except CompressionMissingError as missing:
                raise IdempotencyPersistenceConfigError(str(missing)) from missing
        self._items = items
        self._compression = compression
        self._threshold = item_size_threshold
        self._at_most = max_result_bytes
        self._offload = offload

    def fits(self, record: DataRecord) -> bool:
        """Whether the completed record fits its item as it is."""
        text = record.response_data
        is_small = text.isascii() and len(text) + MOST_OF_THE_REST <= self._threshold  # this library writes ASCII
        return is_small or self._items.size(record) <= self._threshold

    def packing(self, record: DataRecord, uploading: Retries) -> Procedure[DataRecord]:
        """Bring the completed record, which does not fit, into a form that does.  *uploading* is how long it may be uploaded.

        Raises:
            IdempotencyResultNotKeptError: there is none.
        """
        try:
            return (yield from self._packing(record, uploading))
        except IdempotencyResultNotKeptError:
            raise
        except Exception as error:  # memory is scarce where results are large; the effect has happened all the same
            raise IdempotencyResultNotKeptError(
                f"The result of idempotency key {record.key} could not be made smaller", error
            ) from error

    def _packing(self, record: DataRecord, uploading: Retries) -> Procedure[DataRecord]:
        body: bytes
        smallest: DataRecord
        body, smallest = yield Work(self._compressed, (record,))
        size = self._items.size(smallest)
        if size <= self._threshold:
            return smallest
        trouble: Exception | None = None
        if self._offload is not None:
            try:
                place = yield from _uploading(self._offload, record, body, uploading)
                return record.replace(response_data="", packed_result=place)
            except Exception as error:  # noqa: BLE001 - a cause of the error below, unless the result fits after all
                trouble = error
        if size <= MAX_ITEM_BYTES:
            return smallest
        raise _kept_nowhere(record, len(body), trouble) from trouble

    def _compressed(self, record: DataRecord) -> tuple[bytes, DataRecord]:
        """The result as small as this store makes it, and the record with it."""
        body = record.response_data.encode()
        if len(body) > self._at_most:
            raise IdempotencyResultNotKeptError(
                f"The result of idempotency key {record.key} has {len(body)} bytes, more than max_result_bytes={self._at_most}"
            )
        if self._compression is None:
            return body, record
        body = compress(body, self._compression)
        return body, record.replace(response_data="", packed_result=body)

    def loading(self, record: DataRecord, downloading: Retries) -> Procedure[str]:
        """Get the result behind `packed_result`, as text.

        Raises:
            IdempotencyResultNotKeptError: it is gone, or was altered.
        """
        packed = record.packed_result
        try:
            if isinstance(packed, OffloadedResult):
                body = yield from self._downloading(packed, downloading)
                text: str = yield Work(self._opened, (packed, body))
            else:
                text = yield Work(self._decompressed, (packed or b"",))
        except UnreadableResultError as error:
            raise IdempotencyResultNotKeptError(
                f"The function ran for idempotency key {record.key}, but {error}; it will not be run again"
            ) from error
        return text

    def _downloading(self, place: OffloadedResult, downloading: Retries) -> Procedure[bytes]:
        if self._offload is None:
            raise IdempotencyPersistenceConfigError(f"The result is kept at {place.location}; give this store a result_offload")
        if place.size > self._at_most:
            raise UnreadableResultError(f"its result has more than max_result_bytes={self._at_most} bytes")
        wanted = {"location": place.location, "at_most": place.size}
        try:
            body: bytes = yield from downloading.answer(sending, self._offload.get, wanted)
        except LookupError:
            raise UnreadableResultError(f"its result is no longer at {place.location}") from None
        return body

    def _opened(self, place: OffloadedResult, body: bytes) -> str:
        """The text of a downloaded result, which is the one that was uploaded."""
        if _digest(body) != place.sha256:
            raise UnreadableResultError(f"what is kept at {place.location} is not its result")
        return self._decompressed(body) if is_compressed(body) else body.decode()

    def _decompressed(self, body: bytes) -> str:
        return decompress(body, self._at_most).decode()


def _uploading(offload: ResultOffload, record: DataRecord, body: bytes, uploading: Retries) -> Procedure[OffloadedResult]:
    """Keep the body under a name that no other attempt, and no other result of this one, can have."""
    digest: str = yield Work(_digest, (body,))
    name = f"{_digest(record.key.encode())}/{record.owner_token or 'nobody'}-{digest[:16]}"
    location = yield from uploading.answer(sending, offload.put, {"name": name, "body": body})
    if not isinstance(location, str) or not location:
        raise TypeError(f"result_offload.put must return the place of the body, not {type(location).__name__}")
    return OffloadedResult(location, digest, len(body))


def _digest(body: bytes) -> str:
    return sha256(body).hexdigest()


def _kept_nowhere(record: DataRecord, size: int, trouble: Exception | None) -> IdempotencyResultNotKeptError:
    what = f"The result of idempotency key {record.key} has {size} bytes as small as this store makes it"
    if trouble is not None:
        return IdempotencyResultNotKeptError(f"{what}, and its offload failed", trouble)
    return IdempotencyResultNotKeptError(f"{what}; a DynamoDB item holds {MAX_ITEM_BYTES}. Give the store a result_offload")
