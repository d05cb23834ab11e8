"""The store contract, on every store of `stores.STORES`, sync and async; `test_other_ways` tells some of it elsewhere.

`peek` reads the record past the store, so that a store is never its own witness.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from persistence.exceptions import (
    BaseError,
    IdempotencyAlreadyInProgressError,
    IdempotencyInvalidStatusError,
    IdempotencyItemAlreadyExistsError,
    IdempotencyItemNotFoundError,
    IdempotencyLeaseLostError,
    IdempotencyPersistenceLayerError,
)

if TYPE_CHECKING:
    from doubles import FakeClock
    from stores import Peek
    from verbs import Verbs

KEY = "orders.handler#5f4dcc3b5aa765d61d8327deb882cf99"


def refusal(verbs: Verbs, *args: Any, **fields: Any) -> IdempotencyItemAlreadyExistsError:
    """The refusal of a claim that must be refused."""
    with pytest.raises(IdempotencyItemAlreadyExistsError) as refused:
        verbs.claim(verbs.offer(*args, **fields))
    return refused.value


def fencing(verb: Any, record: Any) -> IdempotencyLeaseLostError:
    """The error of a write that must be fenced off."""
    with pytest.raises(IdempotencyLeaseLostError) as fenced:
        verb(record)
    return fenced.value


class TestClaim:
    def test_an_absent_key_is_granted_and_stored_as_offered(self, verbs: Verbs, clock: FakeClock, peek: Peek) -> None:
        offer = verbs.offer(KEY, "a", lease_ms=1_000, expires_s=60, payload_hash="h", holder="request-1")

        granted = verbs.claim(offer)

        assert granted == offer
        assert peek(KEY) == {
            "id": peek(KEY)["id"],  # on a table with a sort key, the static partition
            **({"sk": KEY} if "sk" in peek(KEY) else {}),
            "status": "INPROGRESS",
            "expiration": clock.now_ms // 1000 + 60,
            "in_progress_expiration": clock.now_ms + 1_000,
            "validation": "h",
            "owner_token": "a",
            "generation": 1,
            "holder": "request-1",
        }

    def test_a_claim_without_hash_and_holder_stores_neither(self, verbs: Verbs, peek: Peek) -> None:
        verbs.claim(verbs.offer(KEY, "a"))

        assert not {"validation", "holder", "data", "result_not_kept"} & peek(KEY).keys()

    def test_a_live_claim_refuses_with_the_record_that_holds_the_key(self, verbs: Verbs, clock: FakeClock, peek: Peek) -> None:
        verbs.claim(verbs.offer(KEY, "a", lease_ms=1_000, payload_hash="h", holder="request-1"))
        before = peek(KEY)

        existing = refusal(verbs, KEY, "b", payload_hash="other", holder="request-2").old_data_record

        assert (existing.key, existing.stored_status, existing.owner_token) == (KEY, "INPROGRESS", "a")
        assert existing.in_progress_expiry_timestamp == clock.now_ms + 1_000
        assert existing.expiry_timestamp == clock.now_ms // 1000 + 60
        assert (existing.payload_hash, existing.holder, existing.generation) == ("h", "request-1", 1)
        assert peek(KEY) == before

    def test_a_lease_is_taken_over_in_the_millisecond_after_its_end(self, verbs: Verbs, clock: FakeClock, peek: Peek) -> None:
        verbs.claim(verbs.offer(KEY, "a", lease_ms=1_000))
        clock.advance(ms=1_000)
        refusal(verbs, KEY, "b")

        clock.advance(ms=1)
        granted = verbs.claim(verbs.offer(KEY, "b"))

        assert (granted.owner_token, granted.generation, granted.took_over) == ("b", 2, True)
        assert (peek(KEY)["owner_token"], peek(KEY)["generation"]) == ("b", 2)

    def test_a_live_lease_is_not_taken_over_however_long_its_record_has_expired(self, verbs: Verbs, clock: FakeClock) -> None:
        verbs.claim(verbs.offer(KEY, "a", lease_ms=3_600_000, expires_s=1))

        clock.advance(seconds=3_600)
        refusal(verbs, KEY, "b")

        clock.advance(ms=1)
        assert verbs.claim(verbs.offer(KEY, "b")).took_over

    def test_a_claim_without_a_lease_end_holds_for_the_whole_second_of_its_expiry(self, verbs: Verbs, clock: FakeClock) -> None:
        claimed = verbs.claim(verbs.offer(KEY, "a", lease_ms=None, expires_s=60))
        clock.now_ms = claimed.expiry_timestamp * 1000 + 999
        refusal(verbs, KEY, "b")

        clock.advance(ms=1)
        granted = verbs.claim(verbs.offer(KEY, "b"))

        assert (granted.owner_token, granted.generation, granted.took_over) == ("b", 2, True)

    def test_a_result_is_kept_for_the_whole_second_of_its_expiry(self, verbs: Verbs, clock: FakeClock) -> None:
        completed = verbs.completed(verbs.claim(verbs.offer(KEY, "a")), '"A"', expires_s=60)
        verbs.complete(completed)
        clock.now_ms = completed.expiry_timestamp * 1000 + 999
        existing = refusal(verbs, KEY, "b").old_data_record
        assert (existing.stored_status, existing.response_data) == ("COMPLETED", '"A"')

        clock.advance(ms=1)
        granted = verbs.claim(verbs.offer(KEY, "b"))

        assert (granted.owner_token, granted.generation, granted.took_over) == ("b", 2, False)

    def test_nothing_of_an_expired_result_survives_the_next_claim(self, verbs: Verbs, clock: FakeClock, peek: Peek) -> None:
        verbs.complete(verbs.completed(verbs.claim(verbs.offer(KEY, "a", payload_hash="h", holder="request-1")), '"A"'))
        clock.advance(seconds=61)

        verbs.claim(verbs.offer(KEY, "b"))

        assert not {"data", "validation", "holder"} & peek(KEY).keys()
        assert verbs.fetch(KEY).response_data == ""

    def test_the_end_of_an_old_lease_does_not_free_a_result(self, verbs: Verbs, clock: FakeClock) -> None:
        verbs.complete(verbs.completed(verbs.claim(verbs.offer(KEY, "a", lease_ms=1_000)), '"A"', expires_s=60))

        clock.advance(ms=1_001)

        assert refusal(verbs, KEY, "b").old_data_record.response_data == '"A"'

    def test_the_generation_counts_takeovers_and_claims_of_expired_results(self, verbs: Verbs, clock: FakeClock) -> None:
        first = verbs.claim(verbs.offer(KEY, "a", lease_ms=1_000))
        clock.advance(ms=1_001)
        second = verbs.claim(verbs.offer(KEY, "b"))
        verbs.complete(verbs.completed(second, "2", expires_s=10))
        clock.advance(seconds=11)
        third = verbs.claim(verbs.offer(KEY, "c", lease_ms=1_000))
        clock.advance(ms=1_001)
        fourth = verbs.claim(verbs.offer(KEY, "d"))

        claims = [first, second, third, fourth]

        assert [claim.generation for claim in claims] == [1, 2, 3, 4]
        assert [claim.took_over for claim in claims] == [False, True, False, True]

    def test_an_offer_that_has_seen_the_orphan_it_supersedes_says_that_it_took_over(self, verbs: Verbs, clock: FakeClock) -> None:
        """As `execution` does when a live record aged into an orphan between the refusal and its judgement."""
        verbs.claim(verbs.offer(KEY, "a", lease_ms=1_000))
        seen = refusal(verbs, KEY, "b").old_data_record
        clock.advance(ms=1_001)

        granted = verbs.claim(verbs.superseding(seen, verbs.offer(KEY, "b")))

        assert (granted.generation, granted.took_over) == (2, True)

    @pytest.mark.parametrize("generation", [0, 1, 3, 9])
    def test_an_offer_that_has_seen_another_generation_still_counts_on_from_the_stored_one(
        self, verbs: Verbs, clock: FakeClock, peek: Peek, generation: int
    ) -> None:
        verbs.claim(verbs.offer(KEY, "a", lease_ms=1_000))
        clock.advance(ms=1_001)
        verbs.claim(verbs.offer(KEY, "b", lease_ms=1_000))
        clock.advance(ms=1_000)
        seen = refusal(verbs, KEY, "c").old_data_record.replace(generation=generation)
        clock.advance(ms=1)

        granted = verbs.claim(verbs.superseding(seen, verbs.offer(KEY, "c")))

        assert (granted.owner_token, granted.generation, granted.took_over) == ("c", 3, True)
        assert peek(KEY)["generation"] == 3

    @pytest.mark.parametrize("generation", [0, 1, 2])
    def test_an_offer_that_has_seen_a_record_breaks_no_live_lease(self, verbs: Verbs, clock: FakeClock, generation: int) -> None:
        verbs.claim(verbs.offer(KEY, "a", lease_ms=1_000))
        clock.advance(ms=1_000)
        seen = refusal(verbs, KEY, "b").old_data_record.replace(generation=generation)
        offer = verbs.superseding(seen, verbs.offer(KEY, "b"))

        with pytest.raises(IdempotencyItemAlreadyExistsError) as refused:
            verbs.claim(offer)

        assert refused.value.old_data_record.owner_token == "a"

    def test_a_lease_that_was_renewed_since_it_was_seen_is_not_broken(self, verbs: Verbs, clock: FakeClock) -> None:
        """A renewal keeps the generation: the claim of what looked like an orphan must still ask for the lease's end."""
        late = verbs.claim(verbs.offer(KEY, "a", lease_ms=1_000, expires_s=1))
        clock.advance(ms=1_001)
        seen = verbs.fetch(KEY)
        verbs.renew(verbs.renewed(late, lease_ms=60_000, expires_s=1))
        clock.advance(seconds=60)

        with pytest.raises(IdempotencyItemAlreadyExistsError) as refused:
            verbs.claim(verbs.superseding(seen, verbs.offer(KEY, "b")))

        assert refused.value.old_data_record.owner_token == "a"

    @pytest.mark.parametrize("takes_over_orphans", [True, False])
    def test_an_orphan_that_completed_since_it_was_seen_keeps_its_result(
        self, verbs: Verbs, clock: FakeClock, takes_over_orphans: bool
    ) -> None:
        late = verbs.claim(verbs.offer(KEY, "a", lease_ms=1_000))
        clock.advance(ms=1_001)
        seen = verbs.fetch(KEY)
        completed = verbs.completed(late, '"A"', expires_s=60)
        verbs.complete(completed)
        clock.now_ms = completed.expiry_timestamp * 1000 + 999
        offer = verbs.superseding(seen, verbs.offer(KEY, "b", takes_over_orphans=takes_over_orphans))

        with pytest.raises(IdempotencyItemAlreadyExistsError) as refused:
            verbs.claim(offer)

        assert refused.value.old_data_record.response_data == '"A"'

    def test_a_claim_that_must_not_take_over_is_refused_by_the_orphan_that_it_has_seen(
        self, verbs: Verbs, clock: FakeClock
    ) -> None:
        verbs.claim(verbs.offer(KEY, "a", lease_ms=1_000, expires_s=2))
        clock.advance(seconds=3_600)
        offer = verbs.superseding(verbs.fetch(KEY), verbs.offer(KEY, "b", takes_over_orphans=False))

        with pytest.raises(IdempotencyItemAlreadyExistsError) as refused:
            verbs.claim(offer)

        assert refused.value.old_data_record.owner_token == "a"

    def test_a_claim_that_must_not_take_over_is_refused_by_an_orphan_however_old(self, verbs: Verbs, clock: FakeClock) -> None:
        verbs.claim(verbs.offer(KEY, "a", lease_ms=1_000, expires_s=2))
        clock.advance(seconds=10 * 365 * 24 * 3600)

        existing = refusal(verbs, KEY, "b", takes_over_orphans=False).old_data_record

        assert existing.owner_token == "a"

    def test_a_claim_that_must_not_take_over_is_refused_by_an_expired_claim_without_lease(
        self, verbs: Verbs, clock: FakeClock
    ) -> None:
        verbs.claim(verbs.offer(KEY, "a", lease_ms=None, expires_s=2))
        clock.advance(seconds=10 * 365 * 24 * 3600)

        assert refusal(verbs, KEY, "b", takes_over_orphans=False).old_data_record.owner_token == "a"

    def test_a_claim_that_must_not_take_over_gets_an_absent_key_and_an_expired_result(
        self, verbs: Verbs, clock: FakeClock
    ) -> None:
        completed = verbs.completed(verbs.claim(verbs.offer(KEY, "a", takes_over_orphans=False)), '"A"')
        verbs.complete(completed)
        clock.now_ms = completed.expiry_timestamp * 1000 + 999
        refusal(verbs, KEY, "b", takes_over_orphans=False)

        clock.advance(ms=1)
        granted = verbs.claim(verbs.offer(KEY, "b", takes_over_orphans=False))

        assert (granted.generation, granted.took_over) == (2, False)

    def test_a_request_that_is_too_old_gets_no_key_without_a_record_and_writes_nothing(
        self, verbs: Verbs, clock: FakeClock, peek: Peek
    ) -> None:
        """Whether an orphan was seen before or not: it may have vanished since."""
        fresh_until_ms = clock.now_ms - 1
        seen = verbs.offer(KEY, "a", generation=3)

        assert refusal(verbs, KEY, "b", fresh_until_ms=fresh_until_ms).old_data_record is None
        with pytest.raises(IdempotencyItemAlreadyExistsError) as refused:
            verbs.claim(verbs.superseding(seen, verbs.offer(KEY, "b", fresh_until_ms=fresh_until_ms)))

        assert refused.value.old_data_record is None
        assert peek(KEY) is None

    def test_a_request_is_not_too_old_in_its_last_fresh_millisecond(self, verbs: Verbs, clock: FakeClock) -> None:
        assert verbs.claim(verbs.offer(KEY, "a", fresh_until_ms=clock.now_ms)).owner_token == "a"

    def test_a_request_that_is_too_old_is_refused_by_a_result_before_and_after_it_expires(
        self, verbs: Verbs, clock: FakeClock, peek: Peek
    ) -> None:
        """Also if it saw the record as an orphan: the late attempt has completed it since."""
        late = verbs.claim(verbs.offer(KEY, "a", lease_ms=1_000))
        clock.advance(ms=1_001)
        seen = verbs.fetch(KEY)
        completed = verbs.completed(late, '"A"')
        verbs.complete(completed)
        before = peek(KEY)

        for now_ms in (clock.now_ms, (completed.expiry_timestamp + 1) * 1000):
            clock.now_ms = now_ms
            offer = verbs.offer(KEY, "b", fresh_until_ms=now_ms - 1)
            for each in (offer, verbs.superseding(completed, offer), verbs.superseding(seen, offer)):
                with pytest.raises(IdempotencyItemAlreadyExistsError) as refused:
                    verbs.claim(each)
                assert refused.value.old_data_record.response_data == '"A"'

        assert peek(KEY) == before

    @pytest.mark.parametrize("lease_ms", [1_000, None], ids=["lease", "no lease"])
    def test_a_request_that_is_too_old_takes_over_the_orphan_that_it_has_seen_once_its_lease_is_over(
        self, verbs: Verbs, clock: FakeClock, lease_ms: int | None
    ) -> None:
        orphan = verbs.claim(verbs.offer(KEY, "a", lease_ms=lease_ms, expires_s=1))
        ended_ms = orphan.in_progress_expiry_timestamp if lease_ms else orphan.expiry_timestamp * 1000 + 999
        clock.now_ms = ended_ms
        late = verbs.superseding(orphan, verbs.offer(KEY, "b", fresh_until_ms=0))
        with pytest.raises(IdempotencyItemAlreadyExistsError):
            verbs.claim(late)

        clock.advance(ms=1)
        granted = verbs.claim(late)

        assert (granted.owner_token, granted.generation, granted.took_over) == ("b", 2, True)
        assert verbs.fetch(KEY).owner_token == "b"

    def test_a_request_that_is_too_old_takes_over_an_orphan_that_another_attempt_has_left_since(
        self, verbs: Verbs, clock: FakeClock
    ) -> None:
        seen = verbs.claim(verbs.offer(KEY, "a", lease_ms=1_000))
        clock.advance(ms=1_001)
        verbs.claim(verbs.superseding(seen, verbs.offer(KEY, "b", lease_ms=1_000)))
        clock.advance(ms=1_001)

        granted = verbs.claim(verbs.superseding(seen, verbs.offer(KEY, "c", fresh_until_ms=0)))

        assert (granted.generation, granted.took_over) == (3, True)

    def test_a_request_that_is_too_old_takes_over_no_orphan_where_takeovers_are_forbidden(
        self, verbs: Verbs, clock: FakeClock
    ) -> None:
        orphan = verbs.claim(verbs.offer(KEY, "a", lease_ms=1_000))
        clock.advance(seconds=3_600)
        offer = verbs.offer(KEY, "b", fresh_until_ms=0, takes_over_orphans=False)

        for each in (offer, verbs.superseding(orphan, offer)):
            with pytest.raises(IdempotencyItemAlreadyExistsError) as refused:
                verbs.claim(each)
            assert refused.value.old_data_record.owner_token == "a"

    def test_a_repeated_claim_is_refused_with_the_claimants_own_record(self, verbs: Verbs) -> None:
        """So that an attempt whose first answer was lost recognises its own write."""
        offer = verbs.offer(KEY, "a")
        verbs.claim(offer)

        with pytest.raises(IdempotencyItemAlreadyExistsError) as refused:
            verbs.claim(offer)

        assert refused.value.old_data_record.owner_token == "a"

    def test_a_record_of_unknown_status_is_an_error_until_it_expires(self, verbs: Verbs, clock: FakeClock, peek: Peek) -> None:
        claimed = verbs.claim(verbs.offer(KEY, "a", lease_ms=1_000).replace(status="PAUSED"))
        clock.now_ms = claimed.expiry_timestamp * 1000 + 999
        before = peek(KEY)

        with pytest.raises(IdempotencyPersistenceLayerError) as failure:
            verbs.claim(verbs.offer(KEY, "b"))
        assert isinstance(failure.value.args[1], IdempotencyInvalidStatusError)
        assert peek(KEY) == before

        clock.advance(ms=1)
        granted = verbs.claim(verbs.offer(KEY, "b"))
        assert (granted.generation, granted.took_over) == (2, False)

    def test_keys_do_not_disturb_each_other(self, verbs: Verbs, peek: Peek) -> None:
        verbs.claim(verbs.offer(KEY, "a"))
        other = verbs.claim(verbs.offer(KEY + "0", "b"))
        before = peek(KEY)

        verbs.complete(verbs.completed(other, '"B"'))

        assert peek(KEY) == before
        assert peek(KEY + "0")["data"] == '"B"'


class TestFetch:
    def test_an_absent_key_has_no_record(self, verbs: Verbs) -> None:
        assert verbs.fetch(KEY) is None

    def test_a_record_reads_as_it_was_granted(self, verbs: Verbs) -> None:
        granted = verbs.claim(verbs.offer(KEY, "a", payload_hash="h", holder="request-1"))

        found = verbs.fetch(KEY)

        assert found.replace(idempotency_key=KEY, sort_key=None) == granted
        assert found.key == KEY

    def test_what_concerns_only_the_claiming_call_is_not_read_back(self, verbs: Verbs, clock: FakeClock) -> None:
        verbs.claim(verbs.offer(KEY, "a", lease_ms=1_000))
        clock.advance(ms=1_001)
        deadline_ms = clock.now_ms + 30_000
        verbs.claim(verbs.offer(KEY, "b", deadline_ms=deadline_ms, takes_over_orphans=True))
        verbs.claim(verbs.offer(KEY + "0", "b", deadline_ms=deadline_ms, takes_over_orphans=False))

        found, other = verbs.fetch(KEY), verbs.fetch(KEY + "0")

        assert (found.took_over, found.deadline_ms) == (False, None)
        assert (other.takes_over_orphans, other.deadline_ms) == (True, None)


class TestComplete:
    def test_the_result_joins_what_the_claim_wrote(self, verbs: Verbs, clock: FakeClock, peek: Peek) -> None:
        granted = verbs.claim(verbs.offer(KEY, "a", payload_hash="h", holder="request-1"))
        claimed = peek(KEY)
        clock.advance(ms=500, seconds=7)

        verbs.complete(verbs.completed(granted, '{"n": 1}', expires_s=60))

        expiry_s = clock.now_ms // 1000 + 60
        assert peek(KEY) == {**claimed, "status": "COMPLETED", "data": '{"n": 1}', "expiration": expiry_s}

    def test_the_hash_survives_a_completion_that_does_not_repeat_it(self, verbs: Verbs, peek: Peek) -> None:
        granted = verbs.claim(verbs.offer(KEY, "a", payload_hash="h"))

        verbs.complete(verbs.completed(granted, "1").replace(payload_hash=""))

        assert peek(KEY)["validation"] == "h"

    def test_a_repeated_completion_changes_nothing(self, verbs: Verbs, peek: Peek) -> None:
        completed = verbs.completed(verbs.claim(verbs.offer(KEY, "a", payload_hash="h")), '"A"')
        verbs.complete(completed)
        before = peek(KEY)

        verbs.complete(completed)

        assert peek(KEY) == before

    def test_a_holder_may_complete_after_its_lease_if_nobody_took_over(self, verbs: Verbs, clock: FakeClock, peek: Peek) -> None:
        granted = verbs.claim(verbs.offer(KEY, "a", lease_ms=1_000))
        clock.advance(seconds=3_600)

        verbs.complete(verbs.completed(granted, '"A"'))

        assert (peek(KEY)["status"], peek(KEY)["data"]) == ("COMPLETED", '"A"')

    def test_a_late_success_is_fenced_off_by_a_running_successor(self, verbs: Verbs, clock: FakeClock, peek: Peek) -> None:
        late = verbs.claim(verbs.offer(KEY, "a", lease_ms=1_000))
        clock.advance(ms=1_001)
        verbs.claim(verbs.offer(KEY, "b", holder="request-2"))
        before = peek(KEY)

        winner = fencing(verbs.complete, verbs.completed(late, '"A"')).record

        assert (winner.owner_token, winner.stored_status, winner.holder) == ("b", "INPROGRESS", "request-2")
        assert peek(KEY) == before

    def test_a_late_success_cannot_replace_the_winners_result(self, verbs: Verbs, clock: FakeClock, peek: Peek) -> None:
        late = verbs.claim(verbs.offer(KEY, "a", lease_ms=1_000))
        clock.advance(ms=1_001)
        verbs.complete(verbs.completed(verbs.claim(verbs.offer(KEY, "b")), '"B"'))
        before = peek(KEY)

        winner = fencing(verbs.complete, verbs.completed(late, '"A"')).record

        assert (winner.owner_token, winner.stored_status, winner.response_data) == ("b", "COMPLETED", '"B"')
        assert peek(KEY) == before

    def test_a_result_finds_its_place_although_its_record_has_vanished(self, verbs: Verbs, peek: Peek) -> None:
        """A table's TTL may delete a record as soon as it has expired, whoever still works under it."""
        granted = verbs.claim(verbs.offer(KEY, "a", payload_hash="h"))
        verbs.release(granted)
        completed = verbs.completed(granted, '"A"')

        verbs.complete(completed)

        found = verbs.fetch(KEY)
        assert (found.stored_status, found.response_data, found.payload_hash) == ("COMPLETED", '"A"', "h")
        assert found.expiry_timestamp == completed.expiry_timestamp
        before = peek(KEY)
        verbs.complete(completed)
        assert peek(KEY) == before
        fencing(verbs.complete, completed.replace(owner_token="b", response_data='"B"'))
        assert peek(KEY) == before

    def test_the_generation_and_the_holder_survive_a_vanished_record(self, verbs: Verbs, clock: FakeClock, peek: Peek) -> None:
        verbs.claim(verbs.offer(KEY, "a", lease_ms=1_000))
        clock.advance(ms=1_001)
        granted = verbs.claim(verbs.offer(KEY, "b", holder="request-2"))
        verbs.release(granted)

        verbs.complete(verbs.completed(granted, '"B"', expires_s=60))

        assert (peek(KEY)["generation"], peek(KEY)["holder"]) == (2, "request-2")
        clock.advance(seconds=61)
        assert verbs.claim(verbs.offer(KEY, "c")).generation == 3

    def test_a_result_that_is_not_kept_leaves_its_mark_and_no_data(self, verbs: Verbs, peek: Peek) -> None:
        granted = verbs.claim(verbs.offer(KEY, "a", payload_hash="h"))
        claimed = peek(KEY)
        record = verbs.without_result(granted)

        verbs.complete(record)

        expiry_s = record.expiry_timestamp
        assert peek(KEY) == {**claimed, "status": "COMPLETED", "expiration": expiry_s, "result_not_kept": True}
        existing = refusal(verbs, KEY, "b").old_data_record
        assert (existing.stored_status, existing.result_kept, existing.response_data) == ("COMPLETED", False, "")

    def test_the_mark_goes_with_the_next_claim(self, verbs: Verbs, clock: FakeClock, peek: Peek) -> None:
        record = verbs.without_result(verbs.claim(verbs.offer(KEY, "a")))
        verbs.complete(record)
        clock.now_ms = record.expiry_timestamp * 1000 + 999
        refusal(verbs, KEY, "b")

        clock.advance(ms=1)
        granted = verbs.claim(verbs.offer(KEY, "b"))

        assert "result_not_kept" not in peek(KEY)
        verbs.complete(verbs.completed(granted, '"B"'))
        assert (verbs.fetch(KEY).result_kept, verbs.fetch(KEY).response_data) == (True, '"B"')

    def test_a_mark_is_fenced_like_a_result(self, verbs: Verbs, clock: FakeClock, peek: Peek) -> None:
        late = verbs.claim(verbs.offer(KEY, "a", lease_ms=1_000))
        clock.advance(ms=1_001)
        verbs.complete(verbs.completed(verbs.claim(verbs.offer(KEY, "b")), '"B"'))
        before = peek(KEY)

        fencing(verbs.complete, verbs.without_result(late))

        assert peek(KEY) == before


class TestRelease:
    def test_a_released_key_is_free_at_once(self, verbs: Verbs, peek: Peek) -> None:
        verbs.release(verbs.claim(verbs.offer(KEY, "a")))

        assert peek(KEY) is None
        granted = verbs.claim(verbs.offer(KEY, "b"))
        assert (granted.generation, granted.took_over) == (1, False)

    def test_releasing_an_absent_key_is_no_error(self, verbs: Verbs, peek: Peek) -> None:
        assert verbs.release(verbs.offer(KEY, "a")) is False

        assert peek(KEY) is None

    def test_a_release_may_be_repeated(self, verbs: Verbs, peek: Peek) -> None:
        granted = verbs.claim(verbs.offer(KEY, "a"))
        assert verbs.release(granted) is True

        assert verbs.release(granted) is False

        assert peek(KEY) is None

    def test_a_repeated_release_cannot_remove_a_successors_claim(self, verbs: Verbs, peek: Peek) -> None:
        first = verbs.claim(verbs.offer(KEY, "a"))
        verbs.release(first)
        verbs.claim(verbs.offer(KEY, "b"))
        before = peek(KEY)

        assert fencing(verbs.release, first).record.owner_token == "b"

        assert peek(KEY) == before

    def test_a_late_failure_cannot_remove_a_running_successors_claim(self, verbs: Verbs, clock: FakeClock, peek: Peek) -> None:
        late = verbs.claim(verbs.offer(KEY, "a", lease_ms=1_000))
        clock.advance(ms=1_001)
        verbs.claim(verbs.offer(KEY, "b"))
        before = peek(KEY)

        assert fencing(verbs.release, late).record.owner_token == "b"

        assert peek(KEY) == before

    def test_a_late_failure_cannot_delete_the_winners_result(self, verbs: Verbs, clock: FakeClock, peek: Peek) -> None:
        late = verbs.claim(verbs.offer(KEY, "a", lease_ms=1_000))
        clock.advance(ms=1_001)
        verbs.complete(verbs.completed(verbs.claim(verbs.offer(KEY, "b")), '"B"'))
        before = peek(KEY)

        assert fencing(verbs.release, late).record.response_data == '"B"'

        assert peek(KEY) == before

    def test_a_completion_whose_answer_was_lost_survives_a_release(self, verbs: Verbs, peek: Peek) -> None:
        granted = verbs.claim(verbs.offer(KEY, "a"))
        verbs.complete(verbs.completed(granted, '"A"'))
        before = peek(KEY)

        assert fencing(verbs.release, granted).record.owner_token == "a"

        assert peek(KEY) == before

    def test_a_holder_may_release_after_its_lease_if_nobody_took_over(self, verbs: Verbs, clock: FakeClock, peek: Peek) -> None:
        granted = verbs.claim(verbs.offer(KEY, "a", lease_ms=1_000))
        clock.advance(seconds=3_600)

        verbs.release(granted)

        assert peek(KEY) is None


def kept(verbs: Verbs, error: type[BaseError], key: str = KEY, **options: Any) -> Any:
    """The error of a release of an orphan that must be refused."""
    with pytest.raises(error) as raised:
        verbs.release_orphan(key, **options)
    assert type(raised.value) is error
    assert (raised.value.idempotency_key, key in str(raised.value)) == (key, True)
    return raised.value


class TestReleaseOrphan:
    @pytest.mark.parametrize("token", ["a", ""], ids=["ours", "of Powertools"])
    def test_an_orphan_is_released_from_the_first_millisecond_after_its_lease(
        self, verbs: Verbs, clock: FakeClock, peek: Peek, token: str
    ) -> None:
        verbs.claim(verbs.offer(KEY, token, lease_ms=1_000))
        clock.advance(ms=1_000)
        before = peek(KEY)
        error = kept(verbs, IdempotencyAlreadyInProgressError, owner_token=token)
        assert (error.record.owner_token, error.function_ran, error.is_retryable) == (token, None, True)
        assert peek(KEY) == before

        clock.advance(ms=1)
        verbs.release_orphan(KEY, owner_token=token)

        assert peek(KEY) is None
        assert verbs.claim(verbs.offer(KEY, "b")).generation == 1

    def test_an_orphan_without_a_lease_is_released_when_it_has_expired(self, verbs: Verbs, clock: FakeClock, peek: Peek) -> None:
        verbs.claim(verbs.offer(KEY, "", lease_ms=None, expires_s=60))
        clock.advance(seconds=60)
        kept(verbs, IdempotencyAlreadyInProgressError, owner_token="")

        clock.advance(seconds=1)
        verbs.release_orphan(KEY, owner_token="")

        assert peek(KEY) is None

    def test_the_refusal_of_a_live_lease_says_when_it_ends(self, verbs: Verbs, clock: FakeClock) -> None:
        verbs.claim(verbs.offer(KEY, "a", lease_ms=1_000))
        ends = datetime.fromtimestamp((clock.now_ms + 1_000) / 1000, tz=UTC).isoformat(timespec="milliseconds")

        error = kept(verbs, IdempotencyAlreadyInProgressError, owner_token="a")

        assert ends in str(error)
        assert "even_if_leased=True" in str(error)

    def test_a_live_lease_is_released_if_the_caller_says_so(self, verbs: Verbs, peek: Peek) -> None:
        verbs.claim(verbs.offer(KEY, "a"))

        verbs.release_orphan(KEY, owner_token="a", even_if_leased=True)

        assert peek(KEY) is None

    @pytest.mark.parametrize("even_if_leased", [False, True])
    @pytest.mark.parametrize(("seen", "holder"), [("a", "b"), ("", "b"), ("b", "")], ids=["both", "seen without", "now without"])
    def test_another_attempts_record_is_left_alone(
        self, verbs: Verbs, clock: FakeClock, peek: Peek, seen: str, holder: str, even_if_leased: bool
    ) -> None:
        verbs.claim(verbs.offer(KEY, holder, lease_ms=1_000, holder="request-9"))
        clock.advance(ms=1_001)
        before = peek(KEY)

        error = kept(verbs, IdempotencyLeaseLostError, owner_token=seen, even_if_leased=even_if_leased)

        assert (error.record.owner_token, error.record.holder) == (holder, "request-9")
        assert (error.function_ran, error.is_retryable) == (None, False)
        assert peek(KEY) == before

    @pytest.mark.parametrize("even_if_leased", [False, True])
    @pytest.mark.parametrize("token", ["a", "b"], ids=["its own", "another's"])
    def test_a_completed_record_is_left_alone_even_if_it_has_expired(
        self, verbs: Verbs, clock: FakeClock, peek: Peek, token: str, even_if_leased: bool
    ) -> None:
        verbs.complete(verbs.completed(verbs.claim(verbs.offer(KEY, "a")), '"secret"', expires_s=60))
        clock.advance(seconds=61)
        before = peek(KEY)

        error = kept(verbs, IdempotencyInvalidStatusError, owner_token=token, even_if_leased=even_if_leased)

        assert "COMPLETED" in str(error)
        assert "secret" not in str(error)
        assert peek(KEY) == before

    @pytest.mark.parametrize("even_if_leased", [False, True])
    def test_there_is_nothing_to_release_where_there_is_no_record(self, verbs: Verbs, even_if_leased: bool) -> None:
        error = kept(verbs, IdempotencyItemNotFoundError, owner_token="a", even_if_leased=even_if_leased)

        assert "the key is free" in str(error)

    def test_an_orphan_is_released_once(self, verbs: Verbs, clock: FakeClock) -> None:
        verbs.claim(verbs.offer(KEY, "a", lease_ms=1_000))
        clock.advance(ms=1_001)
        verbs.release_orphan(KEY, owner_token="a")

        kept(verbs, IdempotencyItemNotFoundError, owner_token="a")

    def test_an_attempt_whose_key_was_freed_cannot_renew_or_release_a_successors_claim(
        self, verbs: Verbs, clock: FakeClock, peek: Peek
    ) -> None:
        late = verbs.claim(verbs.offer(KEY, "a", lease_ms=1_000))
        clock.advance(ms=1_001)
        verbs.release_orphan(KEY, owner_token="a")
        verbs.claim(verbs.offer(KEY, "b"))
        before = peek(KEY)

        fencing(verbs.renew, verbs.renewed(late, lease_ms=1_000))
        fencing(verbs.release, late)
        fencing(verbs.complete, verbs.completed(late, '"A"'))

        assert peek(KEY) == before


class TestRenew:
    def test_a_renewal_moves_the_ends_and_nothing_else(self, verbs: Verbs, clock: FakeClock, peek: Peek) -> None:
        granted = verbs.claim(verbs.offer(KEY, "a", lease_ms=1_000, payload_hash="h", holder="request-1"))
        before = peek(KEY)
        clock.advance(ms=900)

        verbs.renew(verbs.renewed(granted, lease_ms=5_000, expires_s=600))

        ends = {"in_progress_expiration": clock.now_ms + 5_000, "expiration": clock.now_ms // 1000 + 600}
        assert peek(KEY) == {**before, **ends}

    def test_a_renewed_lease_holds_to_its_new_end(self, verbs: Verbs, clock: FakeClock) -> None:
        granted = verbs.claim(verbs.offer(KEY, "a", lease_ms=1_000))
        clock.advance(ms=900)
        verbs.renew(verbs.renewed(granted, lease_ms=1_000))
        clock.advance(ms=1_000)
        refusal(verbs, KEY, "b")

        clock.advance(ms=1)

        assert verbs.claim(verbs.offer(KEY, "b")).took_over

    def test_a_lease_that_ended_may_be_renewed_if_nobody_took_over(self, verbs: Verbs, clock: FakeClock) -> None:
        granted = verbs.claim(verbs.offer(KEY, "a", lease_ms=1_000))
        clock.advance(ms=1_001)

        verbs.renew(verbs.renewed(granted, lease_ms=1_000))

        assert refusal(verbs, KEY, "b").old_data_record.owner_token == "a"

    def test_a_renewal_that_was_delayed_on_its_way_does_not_set_the_lease_back(self, verbs: Verbs, peek: Peek) -> None:
        """It lands after the next one, and its holder believes in the later end."""
        granted = verbs.claim(verbs.offer(KEY, "a", lease_ms=1_000))
        delayed = verbs.renewed(granted, lease_ms=59_999, expires_s=600)
        verbs.renew(verbs.renewed(granted, lease_ms=60_000, expires_s=601))
        before = peek(KEY)

        verbs.renew(delayed)

        assert peek(KEY) == before

    def test_a_renewal_after_a_takeover_is_fenced_off(self, verbs: Verbs, clock: FakeClock, peek: Peek) -> None:
        late = verbs.claim(verbs.offer(KEY, "a", lease_ms=1_000))
        clock.advance(ms=1_001)
        verbs.claim(verbs.offer(KEY, "b", lease_ms=1_000))
        before = peek(KEY)

        assert fencing(verbs.renew, verbs.renewed(late, lease_ms=60_000)).record.owner_token == "b"

        assert peek(KEY) == before

    def test_a_renewal_after_the_completion_is_refused(self, verbs: Verbs, peek: Peek) -> None:
        """The heartbeat may be a moment behind; a result's expiry must not become a claim's."""
        granted = verbs.claim(verbs.offer(KEY, "a"))
        verbs.complete(verbs.completed(granted, '"A"'))
        before = peek(KEY)

        fencing(verbs.renew, verbs.renewed(granted, lease_ms=60_000, expires_s=1))

        assert peek(KEY) == before

    def test_a_renewal_does_not_bring_a_released_key_back(self, verbs: Verbs, peek: Peek) -> None:
        granted = verbs.claim(verbs.offer(KEY, "a"))
        verbs.release(granted)

        assert fencing(verbs.renew, verbs.renewed(granted, lease_ms=60_000)).record is None

        assert peek(KEY) is None


class TestPayloads:
    @pytest.mark.parametrize(
        "data",
        [
            "null",
            '""',
            "0",
            "false",
            '{"text": "\\u65e5\\u672c"}',
            '{"text": "日本語 🧾 \u2028"}',
            '"\\u0000\\n\\t"',
            '"%s"' % ("x" * 300_000),
        ],
        ids=["null", "empty", "zero", "false", "escaped", "non-ascii", "control", "300 KB"],
    )
    def test_a_result_reads_back_unchanged(self, verbs: Verbs, peek: Peek, data: str) -> None:
        verbs.complete(verbs.completed(verbs.claim(verbs.offer(KEY, "a")), data))

        assert verbs.fetch(KEY).response_data == data
        assert refusal(verbs, KEY, "b").old_data_record.response_data == data
        assert peek(KEY)["data"] == data

    @pytest.mark.parametrize("key", ["注文#1", "a b\n#🧾", "x#" + "k" * 900], ids=["non-ascii", "emoji", "long"])
    def test_a_key_may_be_any_text(self, verbs: Verbs, key: str) -> None:
        granted = verbs.claim(verbs.offer(key, "a"))

        assert refusal(verbs, key, "b").old_data_record.key == key
        verbs.complete(verbs.completed(granted, '"A"'))
        assert verbs.fetch(key).key == key
        fencing(verbs.release, granted)
