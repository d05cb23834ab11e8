"""What a record permits, at the last refused and the first granted millisecond."""

from __future__ import annotations

import math

import pytest

from persistence.datarecord import DataRecord, Status
from persistence.rules import (
    is_claimable,
    is_completed,
    is_expired,
    is_held_by,
    is_in_progress,
    is_orphaned,
    is_too_old,
    is_waste,
    may_complete,
    may_release,
    waste_from_ms,
)

#: Chosen so that the lease ends within the second that the expiry names, and off its whole.
EXPIRY_S = 1_800_000_000
EXPIRED_MS = (EXPIRY_S + 1) * 1000
LEASE_END_MS = 1_800_000_000_250

LONG_AGO_MS = 1_700_000_000_000
FAR_FUTURE_MS = 1_900_000_000_000


def completed(expiry: int | None = EXPIRY_S, *, owner: str = "a", lease_end_ms: int | None = LEASE_END_MS) -> DataRecord:
    return DataRecord("k", Status.COMPLETED, expiry, lease_end_ms, owner_token=owner)


def in_progress(lease_end_ms: int | None = LEASE_END_MS, expiry: int | None = EXPIRY_S, *, owner: str = "a") -> DataRecord:
    return DataRecord("k", Status.INPROGRESS, expiry, lease_end_ms, owner_token=owner)


@pytest.mark.parametrize(
    ("expiry", "now_ms", "expected"),
    [
        (EXPIRY_S, EXPIRY_S * 1000 - 1, False),
        (EXPIRY_S, EXPIRY_S * 1000, False),
        (EXPIRY_S, EXPIRY_S * 1000 + 1, False),
        (EXPIRY_S, EXPIRED_MS - 1, False),
        (EXPIRY_S, EXPIRED_MS, True),
        (EXPIRY_S, EXPIRED_MS + 1, True),
        (EXPIRY_S, FAR_FUTURE_MS, True),
        (0, 999, False),
        (0, 1000, True),
        (None, FAR_FUTURE_MS, False),
    ],
)
def test_a_record_expires_when_the_second_after_its_expiry_begins(expiry: int | None, now_ms: int, expected: bool) -> None:
    assert is_expired(completed(expiry), now_ms) is expected
    assert is_expired(in_progress(expiry=expiry), now_ms) is expected


@pytest.mark.parametrize(
    ("now_ms", "expected"),
    [(LEASE_END_MS - 1, False), (LEASE_END_MS, False), (LEASE_END_MS + 1, True), (FAR_FUTURE_MS, True)],
)
@pytest.mark.parametrize("expiry", [None, 0, LEASE_END_MS // 1000 - 1, LEASE_END_MS // 1000, 2 * EXPIRY_S])
def test_an_attempt_is_an_orphan_from_the_millisecond_after_its_lease_whatever_its_expiry(
    expiry: int | None, now_ms: int, expected: bool
) -> None:
    assert is_orphaned(in_progress(expiry=expiry), now_ms) is expected


@pytest.mark.parametrize(("now_ms", "expected"), [(0, False), (1, True)])
def test_a_lease_that_ended_at_the_epoch_has_ended(now_ms: int, expected: bool) -> None:
    assert is_orphaned(in_progress(lease_end_ms=0, expiry=None), now_ms) is expected


@pytest.mark.parametrize(
    ("expiry", "now_ms", "expected"),
    [
        (EXPIRY_S, EXPIRED_MS - 1, False),
        (EXPIRY_S, EXPIRED_MS, True),
        (EXPIRY_S, EXPIRED_MS + 1, True),
        (None, FAR_FUTURE_MS, False),
    ],
)
def test_an_attempt_without_a_lease_is_an_orphan_when_its_record_has_expired(
    expiry: int | None, now_ms: int, expected: bool
) -> None:
    assert is_orphaned(in_progress(None, expiry), now_ms) is expected


def test_a_completed_record_is_never_an_orphan() -> None:
    assert not is_orphaned(completed(), FAR_FUTURE_MS)


@pytest.mark.parametrize("takes_over_orphans", [True, False])
def test_a_key_without_a_record_is_claimable(takes_over_orphans: bool) -> None:
    assert is_claimable(None, LONG_AGO_MS, takes_over_orphans=takes_over_orphans)


@pytest.mark.parametrize("takes_over_orphans", [True, False])
@pytest.mark.parametrize(
    ("expiry", "now_ms", "expected"),
    [
        (EXPIRY_S, EXPIRED_MS - 1, False),
        (EXPIRY_S, EXPIRED_MS, True),
        (EXPIRY_S, EXPIRED_MS + 1, True),
        (None, FAR_FUTURE_MS, False),
    ],
)
def test_a_completed_record_is_claimable_once_it_has_expired(
    expiry: int | None, now_ms: int, expected: bool, takes_over_orphans: bool
) -> None:
    assert is_claimable(completed(expiry), now_ms, takes_over_orphans=takes_over_orphans) is expected


@pytest.mark.parametrize(
    ("now_ms", "expected"), [(LEASE_END_MS - 1, False), (LEASE_END_MS, False), (LEASE_END_MS + 1, True), (FAR_FUTURE_MS, True)]
)
@pytest.mark.parametrize("expiry", [None, 0, 2 * EXPIRY_S])
def test_an_orphan_is_claimable_and_a_live_lease_is_not_whatever_the_expiry_says(
    expiry: int | None, now_ms: int, expected: bool
) -> None:
    assert is_claimable(in_progress(expiry=expiry), now_ms) is expected


@pytest.mark.parametrize("record", [in_progress(), in_progress(None), in_progress(0, 0)])
def test_no_orphan_is_claimable_where_takeovers_are_forbidden(record: DataRecord) -> None:
    assert not is_claimable(record, FAR_FUTURE_MS, takes_over_orphans=False)


@pytest.mark.parametrize(
    ("fresh_until_ms", "now_ms", "expected"), [(None, FAR_FUTURE_MS, False), (5, 4, False), (5, 5, False), (5, 6, True)]
)
def test_a_request_is_too_old_after_its_last_fresh_millisecond(fresh_until_ms: int | None, now_ms: int, expected: bool) -> None:
    assert is_too_old(fresh_until_ms, now_ms) is expected


@pytest.mark.parametrize(("fresh_until_ms", "expected"), [(FAR_FUTURE_MS, True), (FAR_FUTURE_MS - 1, False)])
@pytest.mark.parametrize("record", [None, completed(), DataRecord("k", "PAUSED", EXPIRY_S, LEASE_END_MS)])
def test_a_request_that_is_too_old_may_not_have_a_key_that_its_own_run_may_have_left(
    record: DataRecord | None, fresh_until_ms: int, expected: bool
) -> None:
    assert is_claimable(record, FAR_FUTURE_MS, fresh_until_ms=fresh_until_ms) is expected


@pytest.mark.parametrize("takes_over_orphans", [True, False])
@pytest.mark.parametrize("record", [in_progress(), in_progress(None), in_progress(0, 0)])
def test_a_request_that_is_too_old_may_have_an_orphans_key_as_any_other(record: DataRecord, takes_over_orphans: bool) -> None:
    assert is_claimable(record, FAR_FUTURE_MS, takes_over_orphans=takes_over_orphans, fresh_until_ms=0) is takes_over_orphans
    assert not is_claimable(in_progress(), LEASE_END_MS, fresh_until_ms=0)


def test_a_record_with_a_status_of_another_library_is_claimable_once_it_has_expired() -> None:
    record = DataRecord("k", "PAUSED", EXPIRY_S, LEASE_END_MS)

    assert not is_in_progress(record)
    assert not is_completed(record)
    assert not is_claimable(record, EXPIRED_MS - 1)
    assert is_claimable(record, EXPIRED_MS)


@pytest.mark.parametrize(
    ("record", "owner_token", "held", "completable", "releasable"),
    [
        (in_progress(owner="a"), "a", True, True, True),
        (in_progress(owner="a"), "b", False, False, False),
        (in_progress(owner="a"), "", False, False, False),
        (in_progress(owner=""), "a", False, False, False),
        (in_progress(owner=""), "", True, True, True),
        (completed(owner="a"), "a", True, True, False),
        (completed(owner="a"), "b", False, False, False),
        (completed(owner=""), "", True, True, False),
    ],
)
def test_only_the_holder_may_write_and_only_an_unfinished_record_may_be_released(
    record: DataRecord, owner_token: str, held: bool, completable: bool, releasable: bool
) -> None:
    assert is_held_by(record, owner_token) is held
    assert may_complete(record, owner_token) is completable
    assert may_release(record, owner_token) is releasable


def test_a_result_may_be_stored_where_the_record_is_gone() -> None:
    assert may_complete(None, "a")


@pytest.mark.parametrize(
    ("status", "running", "done"), [("INPROGRESS", True, False), ("COMPLETED", False, True), ("", False, False)]
)
def test_a_record_is_in_progress_or_completed_by_its_stored_word(status: str, running: bool, done: bool) -> None:
    record = DataRecord("k", status, expiry_timestamp=0)

    assert is_in_progress(record) is running
    assert is_completed(record) is done


@pytest.mark.parametrize("status", [Status.COMPLETED, Status.INPROGRESS])
@pytest.mark.parametrize("lease_end_ms", [None, 0, LEASE_END_MS, EXPIRED_MS - 1, EXPIRED_MS, FAR_FUTURE_MS])
def test_a_record_is_waste_from_the_millisecond_that_is_computed(status: Status, lease_end_ms: int | None) -> None:
    record = DataRecord("k", status, EXPIRY_S, lease_end_ms)
    from_ms = int(waste_from_ms(record))

    assert [is_waste(record, now_ms) for now_ms in (LONG_AGO_MS, from_ms - 1, from_ms, from_ms + 1)] == [False, False, True, True]


@pytest.mark.parametrize("status", [Status.COMPLETED, Status.INPROGRESS])
def test_a_record_without_an_end_is_never_waste(status: Status) -> None:
    record = DataRecord("k", status, None, LEASE_END_MS)

    assert waste_from_ms(record) == math.inf
    assert not is_waste(record, FAR_FUTURE_MS)
