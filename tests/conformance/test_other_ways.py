"""Other ways to the stores' decisions: each verb of the contract, where a cluster, TLS or another server could break it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from conformance import test_contract as contract
from stores import OTHER_WAYS

if TYPE_CHECKING:
    from doubles import FakeClock
    from stores import Made


@pytest.fixture(params=OTHER_WAYS)
def made(request: pytest.FixtureRequest, clock: FakeClock) -> Made:
    factory, endpoint_fixture = request.param
    made: Made = factory(clock, request.getfixturevalue(endpoint_fixture))
    return made


STORIES = [
    contract.TestClaim.test_an_absent_key_is_granted_and_stored_as_offered,
    contract.TestClaim.test_a_live_claim_refuses_with_the_record_that_holds_the_key,
    contract.TestClaim.test_a_lease_is_taken_over_in_the_millisecond_after_its_end,
    contract.TestClaim.test_nothing_of_an_expired_result_survives_the_next_claim,
    contract.TestClaim.test_a_lease_that_was_renewed_since_it_was_seen_is_not_broken,
    contract.TestClaim.test_a_repeated_claim_is_refused_with_the_claimants_own_record,
    contract.TestFetch.test_an_absent_key_has_no_record,
    contract.TestFetch.test_a_record_reads_as_it_was_granted,
    contract.TestComplete.test_the_result_joins_what_the_claim_wrote,
    contract.TestComplete.test_a_late_success_cannot_replace_the_winners_result,
    contract.TestComplete.test_a_result_finds_its_place_although_its_record_has_vanished,
    contract.TestComplete.test_a_result_that_is_not_kept_leaves_its_mark_and_no_data,
    contract.TestRelease.test_a_released_key_is_free_at_once,
    contract.TestRelease.test_releasing_an_absent_key_is_no_error,
    contract.TestRelease.test_a_late_failure_cannot_delete_the_winners_result,
    contract.TestRenew.test_a_renewal_moves_the_ends_and_nothing_else,
    contract.TestRenew.test_a_renewal_after_a_takeover_is_fenced_off,
    contract.TestRenew.test_a_renewal_that_was_delayed_on_its_way_does_not_set_the_lease_back,
    contract.TestPayloads.test_a_result_reads_back_unchanged,
    contract.TestPayloads.test_a_key_may_be_any_text,
]

TestOtherWays = type("TestOtherWays", (), {story.__name__: story for story in STORIES})
