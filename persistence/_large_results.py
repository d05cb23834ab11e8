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
from persistence.datarecord import DataRecord, OffloadedResult
from persistence.exceptions import IdempotencyPersistenceConfigError, IdempotencyResultNotKeptError

if TYPE_CHECKING:
    from collections.abc import Callable

    from persistence._packing import Compression
    from persistence._retries import Retries
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

    def pack(self, record: DataRecord, uploading: Callable[[DataRecord], Retries]) -> DataRecord:
        """The completed record in a form that fits its item.  *uploading* is how long a large result may be uploaded.

        Raises:
            IdempotencyResultNotKeptError: there is none.
        """
        text = record.response_data
        is_small = text.isascii() and len(text) + MOST_OF_THE_REST <= self._threshold  # this library writes ASCII
        if is_small or self._items.size(record) <= self._threshold:
            return record
        try:
            return self._packed(record, uploading(record))
        except IdempotencyResultNotKeptError:
            raise
        except Exception as error:  # memory is scarce where results are large; the effect has happened all the same
            raise IdempotencyResultNotKeptError(
                f"The result of idempotency key {record.key} could not be made smaller", error
            ) from error

    def _packed(self, record: DataRecord, uploading: Retries) -> DataRecord:
        body = record.response_data.encode()
        if len(body) > self._at_most:
            raise IdempotencyResultNotKeptError(
                f"The result of idempotency key {record.key} has {len(body)} bytes, more than max_result_bytes={self._at_most}"
            )
        smallest = record
        if self._compression is not None:
            body = compress(body, self._compression)
            smallest = record.replace(response_data="", packed_result=body)
        if self._items.size(smallest) <= self._threshold:
            return smallest
        trouble: Exception | None = None
        if self._offload is not None:
            try:
                return record.replace(response_data="", packed_result=_uploaded(self._offload, record, body, uploading))
            except Exception as error:  # noqa: BLE001 - a cause of the error below, unless the result fits after all
                trouble = error
        if self._items.size(smallest) <= MAX_ITEM_BYTES:
            return smallest
        raise _kept_nowhere(record, len(body), trouble) from trouble

    def load(self, record: DataRecord, downloading: Retries) -> str:
        """The result behind `packed_result`, as text.

        Raises:
            IdempotencyResultNotKeptError: it is gone, or was altered.
        """
        try:
            packed = record.packed_result
            if isinstance(packed, OffloadedResult):
                body = self._downloaded(packed, downloading)
                return (decompress(body, self._at_most) if is_compressed(body) else body).decode()
            return decompress(packed or b"", self._at_most).decode()
        except UnreadableResultError as error:
            raise IdempotencyResultNotKeptError(
                f"The function ran for idempotency key {record.key}, but {error}; it will not be run again"
            ) from error

    def _downloaded(self, place: OffloadedResult, downloading: Retries) -> bytes:
        if self._offload is None:
            raise IdempotencyPersistenceConfigError(f"The result is kept at {place.location}; give this store a result_offload")
        if place.size > self._at_most:
            raise UnreadableResultError(f"its result has more than max_result_bytes={self._at_most} bytes")
        try:
            body: bytes = downloading.call(self._offload.get, location=place.location, at_most=place.size)
        except LookupError:
            raise UnreadableResultError(f"its result is no longer at {place.location}") from None
        if sha256(body).hexdigest() != place.sha256:
            raise UnreadableResultError(f"what is kept at {place.location} is not its result")
        return body


def _uploaded(offload: ResultOffload, record: DataRecord, body: bytes, uploading: Retries) -> OffloadedResult:
    """Keep the body under a name that no other attempt, and no other result of this one, can have."""
    digest = sha256(body).hexdigest()
    name = f"{sha256(record.key.encode()).hexdigest()}/{record.owner_token or 'nobody'}-{digest[:16]}"
    location: str = uploading.call(offload.put, name=name, body=body)
    if not isinstance(location, str) or not location:
        raise TypeError(f"result_offload.put must return the place of the body, not {type(location).__name__}")
    return OffloadedResult(location, digest, len(body))


def _kept_nowhere(record: DataRecord, size: int, trouble: Exception | None) -> IdempotencyResultNotKeptError:
    what = f"The result of idempotency key {record.key} has {size} bytes as small as this store makes it"
    if trouble is not None:
        return IdempotencyResultNotKeptError(f"{what}, and its offload failed", trouble)
    return IdempotencyResultNotKeptError(f"{what}; a DynamoDB item holds {MAX_ITEM_BYTES}. Give the store a result_offload")
