"""Where a large result goes: as it is, compressed, or to an offload; and what comes back."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from botocore.exceptions import ClientError, ConnectTimeoutError
from doubles import START_MS, FakeClock, Shelf, incompressible
from faults import client_error, read_timeout
from stores import DEFAULT_NAMES

from persistence import _large_results
from persistence._dynamodb_items import MAX_ITEM_BYTES, ItemFormat
from persistence._large_results import ITEM_SIZE_THRESHOLD, MAX_RESULT_BYTES, LargeResults
from persistence._packing import CompressionMissingError, compress
from persistence._procedures import run
from persistence._retries import Retries
from persistence.datarecord import DataRecord, OffloadedResult
from persistence.exceptions import IdempotencyPersistenceConfigError, IdempotencyResultNotKeptError

ITEMS = ItemFormat(**{**DEFAULT_NAMES, "sort_key_attr": None}, static_pk_value="")
DONE = DataRecord("fn#1", "COMPLETED", 1_800_003_600, 1_800_000_060_250, owner_token="token", generation=1)
KIB = 1024


def results(**options: Any) -> LargeResults:
    defaults = {"compression": "gzip", "item_size_threshold": ITEM_SIZE_THRESHOLD, "max_result_bytes": MAX_RESULT_BYTES}
    return LargeResults(ITEMS, **{**defaults, "offload": None, **options})


def pack(kept: LargeResults, record: DataRecord, clock: FakeClock | None = None) -> DataRecord:
    """The record in a form that fits its item, as a store in trouble for a second at most brings it there."""
    clock = clock or FakeClock()
    return record if kept.fits(record) else run(kept.packing(record, Retries(clock, 1_000)), clock.sleep_ms)


def load(kept: LargeResults, record: DataRecord, clock: FakeClock | None = None) -> str:
    """The result behind the record, as a store in trouble for a second at most gets it."""
    clock = clock or FakeClock()
    return run(kept.loading(record, Retries(clock, 1_000)), clock.sleep_ms)


def sized(size: int, *, compressible: bool = True) -> DataRecord:
    """A completed record whose item has exactly so many bytes."""
    rest = size - ITEMS.size(DONE.replace(response_data='""'))
    text = "x" * rest if compressible else incompressible(rest)
    return DONE.replace(response_data=f'"{text}"')


# Options


def test_an_unknown_compression_is_refused() -> None:
    with pytest.raises(ValueError, match="^compression must be 'gzip', 'zstd' or None, not 'brotli'$"):
        results(compression="brotli")


@pytest.mark.parametrize("threshold", [0, 1023, 400 * KIB + 1])
def test_a_threshold_no_item_can_have_is_refused(threshold: int) -> None:
    with pytest.raises(ValueError, match=f"^item_size_threshold must be from 1024 to 409600 bytes, not {threshold}$"):
        results(item_size_threshold=threshold)


@pytest.mark.parametrize("threshold", [1024, 400 * KIB])
def test_the_bounds_of_the_threshold_are_accepted(threshold: int) -> None:
    assert pack(results(item_size_threshold=threshold), DONE) is DONE


def test_a_result_must_be_allowed_some_bytes() -> None:
    with pytest.raises(ValueError, match="^max_result_bytes must be at least 1, not 0$"):
        results(max_result_bytes=0)


def test_a_compression_that_is_not_installed_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise CompressionMissingError("install it")

    monkeypatch.setattr(_large_results, "zstd", missing)
    with pytest.raises(IdempotencyPersistenceConfigError, match="^install it$"):
        results(compression="zstd")


# Packing


@pytest.mark.parametrize("threshold", [4 * KIB, 350 * KIB])
def test_an_item_of_the_thresholds_size_is_left_alone_and_one_byte_more_is_packed(threshold: int) -> None:
    packing = results(item_size_threshold=threshold)
    most, more = sized(threshold), sized(threshold + 1)

    assert pack(packing, most) is most
    packed = pack(packing, more)
    assert packed == more.replace(response_data="", packed_result=compress(more.response_data.encode(), "gzip"))


def test_without_compression_and_offload_a_result_is_left_alone_as_long_as_an_item_holds_it() -> None:
    packing = results(compression=None)
    most = sized(MAX_ITEM_BYTES)

    assert pack(packing, most) is most
    with pytest.raises(
        IdempotencyResultNotKeptError, match="as small as this store makes it; a DynamoDB item holds 409600. Give"
    ):
        pack(packing, sized(MAX_ITEM_BYTES + 1))


def test_a_compressed_result_over_the_threshold_stays_in_the_item_if_there_is_no_offload() -> None:
    record = sized(400 * KIB, compressible=False)

    packed = pack(results(item_size_threshold=4 * KIB), record)

    assert isinstance(packed.packed_result, bytes)
    assert 4 * KIB < ITEMS.size(packed) <= MAX_ITEM_BYTES


def test_what_is_still_over_the_threshold_is_offloaded_as_small_as_it_got() -> None:
    shelf = Shelf()
    record = sized(900 * KIB, compressible=False)
    body = compress(record.response_data.encode(), "gzip")

    packed = pack(results(offload=shelf), record)

    digest, key_digest = hashlib.sha256(body).hexdigest(), hashlib.sha256(b"fn#1").hexdigest()
    assert packed.response_data == ""
    assert packed.packed_result == OffloadedResult(f"shelf://{key_digest}/token-{digest[:16]}", digest, len(body))
    assert list(shelf.objects.values()) == [body]


def test_without_compression_a_result_is_offloaded_as_it_is() -> None:
    shelf = Shelf()
    record = sized(350 * KIB + 1)

    packed = pack(results(compression=None, offload=shelf), record)

    assert list(shelf.objects.values()) == [record.response_data.encode()]
    assert load(results(offload=shelf), packed) == record.response_data


def test_what_compression_makes_small_enough_is_not_offloaded() -> None:
    shelf = Shelf()

    pack(results(offload=shelf), sized(3 * KIB * KIB))

    assert shelf.puts == []


def test_no_attempt_and_no_result_shares_an_objects_name_with_another() -> None:
    shelf = Shelf()
    packing = results(offload=shelf, compression=None)
    first = sized(351 * KIB)

    for record in (
        first,
        first.replace(owner_token="other"),
        first.replace(response_data=first.response_data.replace("x", "y")),
        first.replace(idempotency_key="fn#2"),
        first.replace(owner_token=""),
    ):
        pack(packing, record)

    assert len(set(shelf.puts)) == 5
    pack(packing, first)
    assert len(shelf.objects) == 5  # a repetition writes the same again
    assert all(len(name) <= 200 for name in shelf.puts)


def test_a_result_of_more_bytes_than_are_ever_read_is_not_kept() -> None:
    shelf = Shelf()
    record = DONE.replace(response_data='"' + "\u65e5" * 200_000 + '"')  # 600,002 bytes
    packing = results(max_result_bytes=600_002, offload=shelf)

    assert load(packing, pack(packing, record)) == record.response_data
    with pytest.raises(IdempotencyResultNotKeptError, match="fn#1 has 600002 bytes, more than max_result_bytes=600001$"):
        pack(results(max_result_bytes=600_001, offload=shelf), record)


def test_a_busy_or_lost_upload_is_repeated() -> None:
    errors = iter([client_error("SlowDown", 503, "Please reduce your request rate."), read_timeout(), None])

    def trouble() -> None:
        error = next(errors)
        if error is not None:
            raise error

    clock, shelf = FakeClock(), Shelf(before_put=trouble)

    packed = pack(results(offload=shelf), sized(900 * KIB, compressible=False), clock)

    assert isinstance(packed.packed_result, OffloadedResult)
    assert len(shelf.puts) == 3
    assert len(clock.slept_ms) == 2


def test_an_upload_that_fails_for_good_is_a_result_that_is_not_kept() -> None:
    """And the error names its cause."""

    def denied() -> None:
        raise client_error("AccessDenied", 403, "Access Denied")

    with pytest.raises(
        IdempotencyResultNotKeptError, match=r"bytes as small.*and its offload failed - \(.*AccessDenied.*\)$"
    ) as caught:
        pack(results(offload=Shelf(before_put=denied)), sized(900 * KIB, compressible=False))
    assert isinstance(caught.value.__cause__, ClientError)


def test_an_upload_that_fails_leaves_a_result_in_its_item_if_that_holds_it() -> None:
    def unreachable() -> None:
        raise ConnectTimeoutError(endpoint_url="https://s3")

    record = sized(399 * KIB, compressible=False)
    packing = results(offload=Shelf(before_put=unreachable), item_size_threshold=4 * KIB)

    packed = pack(packing, record)

    assert isinstance(packed.packed_result, bytes)
    assert load(packing, packed) == record.response_data


def test_a_compression_that_fails_is_a_result_that_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The effect has happened: for want of memory, too, the function must not run again."""
    trouble = MemoryError()

    def exhausted(*_: object) -> bytes:
        raise trouble

    monkeypatch.setattr(_large_results, "compress", exhausted)
    with pytest.raises(
        IdempotencyResultNotKeptError, match="^The result of idempotency key fn#1 could not be made smaller"
    ) as caught:
        pack(results(), sized(351 * KIB))
    assert caught.value.__cause__ is trouble


@pytest.mark.parametrize("place", [None, "", 7])
def test_an_offload_that_names_no_place_is_one_that_failed(place: Any) -> None:
    class Nowhere(Shelf):
        def put(self, name: str, body: bytes) -> str:
            found: str = place
            return found

    with pytest.raises(IdempotencyResultNotKeptError, match=r"its offload failed - \(result_offload.put must return the place"):
        pack(results(offload=Nowhere()), sized(900 * KIB, compressible=False))


# Loading


def offloaded(shelf: Shelf, *, compression: Any = "gzip") -> tuple[DataRecord, DataRecord]:
    """A large record, and as it is stored."""
    record = sized(900 * KIB, compressible=False)
    return record, pack(results(offload=shelf, compression=compression), record)


@pytest.mark.parametrize("written", ["gzip", "zstd", None])
@pytest.mark.parametrize("reads", ["gzip", "zstd", None])
def test_an_offloaded_result_is_read_whatever_compression_is_configured_now(written: Any, reads: Any) -> None:
    shelf = Shelf()
    record, packed = offloaded(shelf, compression=written)

    assert load(results(offload=shelf, compression=reads), packed) == record.response_data


def test_a_missing_object_is_a_result_that_is_no_longer_kept() -> None:
    shelf = Shelf()
    _, packed = offloaded(shelf)
    shelf.objects.clear()

    with pytest.raises(
        IdempotencyResultNotKeptError, match="ran for idempotency key fn#1, but its result is no longer at shelf://"
    ):
        load(results(offload=shelf), packed)


@pytest.mark.parametrize(
    "altered",
    [
        lambda body: body[:-1],
        lambda body: body + b"x",
        lambda body: bytes([body[0] ^ 1]) + body[1:],
        lambda _body: b'{"another": "result"}',
        lambda _body: b"",
    ],
    ids=["cut", "longer", "one bit", "another", "empty"],
)
def test_an_altered_object_is_noticed_before_it_is_read(altered: Any) -> None:
    shelf = Shelf()
    _, packed = offloaded(shelf)
    [(location, body)] = shelf.objects.items()
    shelf.objects[location] = altered(body)

    with pytest.raises(
        IdempotencyResultNotKeptError, match=f"what is kept at {location} is not its result; it will not be run again$"
    ):
        load(results(offload=shelf), packed)


def test_no_more_than_the_object_had_is_fetched() -> None:
    """Whatever is there now."""
    shelf = Shelf()
    _, packed = offloaded(shelf)
    load(results(offload=shelf), packed)

    assert shelf.limits == [len(body) for body in shelf.objects.values()]


def test_an_object_larger_than_allowed_is_not_even_fetched() -> None:
    shelf = Shelf()
    _, packed = offloaded(shelf)

    with pytest.raises(IdempotencyResultNotKeptError, match="its result has more than max_result_bytes=1000 bytes"):
        load(results(offload=shelf, max_result_bytes=1_000), packed)
    assert shelf.gets == []


def test_without_the_offload_an_offloaded_result_says_where_it_is() -> None:
    _, packed = offloaded(Shelf())

    with pytest.raises(
        IdempotencyPersistenceConfigError, match="^The result is kept at shelf://.*; give this store a result_offload$"
    ):
        load(results(), packed)


def test_a_download_that_is_cut_or_busy_is_repeated_and_then_fails_with_its_own_error() -> None:
    def busy() -> None:
        raise client_error("SlowDown", 503, "Please reduce your request rate.")

    clock, shelf = FakeClock(), Shelf()
    _, packed = offloaded(shelf)
    shelf.before_get = busy

    with pytest.raises(ClientError, match="SlowDown"):
        load(results(offload=shelf), packed, clock)
    assert len(shelf.gets) > 3
    assert clock() <= START_MS + 1_000


def test_a_compressed_result_that_was_altered_is_no_longer_kept() -> None:
    with pytest.raises(
        IdempotencyResultNotKeptError, match="key fn#1, but its stored result was altered; it will not be run again$"
    ):
        load(results(), DONE.replace(packed_result=b"\x1f\x8b\xff altered"))
