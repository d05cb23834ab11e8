"""Large results, compressed, kept elsewhere, or lost on the way: the function runs once, and every caller gets one answer."""

from __future__ import annotations

import asyncio
import traceback
from threading import Barrier
from typing import TYPE_CHECKING, Any

import pytest
from boto3.dynamodb.types import Binary
from doubles import LambdaContext, Shelf, incompressible
from fault.test_peer_rows import durable
from faults import (
    KEY,
    ORDER,
    Bench,
    Form,
    Suspended,
    access_denied,
    awaited,
    client_error,
    connection_closed,
    keyed,
    lost,
    raise_suspended,
    read_timeout,
    refused,
)
from stores import large_results

from idempotency import (
    IdempotencyLeaseLostError,
    IdempotencyPersistenceLayerError,
    IdempotencyResultNotKeptError,
    IdempotencyValidationError,
    idempotent,
    idempotent_function,
)
from idempotency.events import Completed, LeaseLost, Refused, Replayed, ResultNotKept
from persistence._large_results import UPLOAD_RESERVE_MS

if TYPE_CHECKING:
    from collections.abc import Callable

#: No compression makes an item of it.
LARGE = {"pages": [incompressible(300_000), incompressible(299_999)], "total": 2}
SMALL = {"total": 2}


def slow_down() -> Exception:
    return client_error("SlowDown", 503, "Please reduce your request rate.")


def raiser(error: Callable[[], BaseException]) -> Callable[[], None]:
    def trouble() -> None:
        raise error()

    return trouble


@pytest.fixture
def shelf(bench: Bench) -> Shelf:
    """The offload of the bench's store."""
    shelf = Shelf()
    large_results(bench, offload=shelf)
    return shelf


class Runs:
    """A function that counts its runs; the n-th returns the n-th result, the last one for ever, or does what it is told."""

    def __init__(self, *results: Any) -> None:
        self.results = results
        self.count = 0

    def __call__(self, _event: Any) -> Any:
        self.count += 1
        result = self.results[min(self.count, len(self.results)) - 1]
        return result() if callable(result) else result


# Replays


def test_a_result_of_2_mb_replays_byte_for_byte(bench: Bench, form: Form, shelf: Shelf) -> None:
    large = {"pages": [incompressible(1_000_000), incompressible(999_999)], "total": 2}
    runs = Runs(large)
    work = form.function(runs, bench.store)

    assert [work(ORDER) for _ in range(3)] == [large, large, large]
    assert runs.count == 1
    assert len(shelf.objects) == 1
    assert set(bench.peek(KEY)["data"]) == {"location", "sha256", "size"}


def test_a_compressible_result_of_2_mb_needs_no_offload(bench: Bench, form: Form) -> None:
    large = {"rows": [{"id": number, "state": "shipped"} for number in range(60_000)]}
    runs = Runs(large)
    work = form.function(runs, bench.store)

    assert [work(ORDER) for _ in range(2)] == [large, large]
    assert runs.count == 1
    assert isinstance(bench.peek(KEY)["data"], Binary)


def test_a_small_result_stays_plain_text(bench: Bench, form: Form, shelf: Shelf) -> None:
    form.function(Runs(SMALL), bench.store)(ORDER)

    assert bench.peek(KEY)["data"] == '{"total": 2}'
    assert shelf.puts == []


def test_a_low_threshold_keeps_the_item_small(bench: Bench, form: Form) -> None:
    """4 KB: what a refused duplicate is billed by."""
    shelf = Shelf()
    large_results(bench, item_size_threshold=4 * 1024, offload=shelf)
    result = incompressible(10_000)
    work = form.function(Runs(result), bench.store)

    assert [work(ORDER), work(ORDER)] == [result, result]
    assert bench.store._items.size(bench.store.fetch(KEY)) < 600
    assert len(shelf.objects) == 1


def test_the_response_hook_and_the_outcome_see_the_loaded_record(bench: Bench, shelf: Shelf) -> None:
    seen: list[Any] = []

    @idempotent_function(
        data_keyword_argument="event",
        persistence_store=bench.store,
        config=keyed(response_hook=lambda response, record: seen.append(record.response_json_as_dict()) or response),
    )
    def work(event: Any) -> Any:
        return LARGE

    work(event=ORDER)
    outcome = work.with_outcome(event=ORDER)

    assert seen == [LARGE]
    assert outcome.value == LARGE
    assert outcome.record.response_json_as_dict() == LARGE
    assert not outcome.ran_now


def test_the_local_cache_keeps_the_loaded_result(bench: Bench, form: Form, shelf: Shelf) -> None:
    first = form.function(Runs(LARGE), bench.store)
    first(ORDER)
    work = form.function(Runs(SMALL), bench.store, keyed(use_local_cache=True))

    assert [work(ORDER) for _ in range(3)] == [LARGE, LARGE, LARGE]
    assert len(shelf.gets) == 1


def test_who_waits_for_another_attempt_gets_its_large_result(bench: Bench, shelf: Shelf) -> None:
    waiting = Form(is_async=False).function(Runs(SMALL), bench.store, keyed(wait_for_in_progress_seconds=60))
    answers: list[Any] = []

    def run(_event: Any) -> Any:
        def finish(ms: float) -> None:
            bench.clock.advance(ms=round(ms))
            granted = bench.store.fetch(KEY)
            if not answers:
                answers.append("waited")
                done = granted.replace(status="COMPLETED", response_data=f'"{incompressible(600_001)}"')
                bench.store.complete(done)

        bench.store.sleep_ms = finish
        return waiting(ORDER)

    late = Form(is_async=False).function(run, bench.store)

    assert late(ORDER) == incompressible(600_001)


def test_another_payload_is_refused_before_anything_is_loaded(bench: Bench, form: Form, shelf: Shelf) -> None:
    work = form.function(Runs(LARGE), bench.store, keyed(payload_validation_jmespath="amount"))
    work({**ORDER, "amount": 1})

    with pytest.raises(IdempotencyValidationError):
        work({**ORDER, "amount": 2})
    assert shelf.gets == []


# Uploads that go wrong


@pytest.mark.parametrize("error", [read_timeout, connection_closed, slow_down])
def test_an_upload_whose_answer_is_lost_is_repeated_under_the_same_name(
    bench: Bench, form: Form, shelf: Shelf, error: Callable[[], Exception]
) -> None:
    left = [error(), error()]

    def trouble() -> None:
        if left:
            raise left.pop()

    shelf.before_put = trouble
    runs = Runs(LARGE)
    work = form.function(runs, bench.store)

    assert [work(ORDER), work(ORDER)] == [LARGE, LARGE]
    assert runs.count == 1
    assert len(shelf.puts) == 3
    assert len(set(shelf.puts)) == 1


def test_an_upload_that_is_denied_ends_in_executed_result_not_kept(bench: Bench, form: Form, shelf: Shelf) -> None:
    shelf.before_put = raiser(access_denied)
    runs, events = Runs(LARGE), []
    work = form.function(runs, bench.store, keyed(observers=[events.append]))

    with pytest.raises(IdempotencyResultNotKeptError, match=f"ran for idempotency key {KEY}.*AccessDenied"):
        work(ORDER)
    with pytest.raises(IdempotencyResultNotKeptError):
        work(ORDER)

    assert runs.count == 1
    assert bench.peek(KEY)["result_not_kept"] is True
    assert [type(event) for event in events if isinstance(event, (Completed, ResultNotKept))] == [ResultNotKept]


def test_an_upload_is_given_up_in_time_to_complete_the_record(bench: Bench, form: Form, shelf: Shelf) -> None:
    deadline_ms = bench.clock() + 15_000
    shelf.before_put = raiser(slow_down)
    runs = Runs(LARGE)
    work = form.handler(runs, bench.store)

    with pytest.raises(IdempotencyResultNotKeptError):
        work(ORDER, LambdaContext(remaining_ms=15_000, clock=bench.clock))

    assert deadline_ms - UPLOAD_RESERVE_MS - 500 < bench.clock() < deadline_ms - 500
    assert bench.peek(KEY)["result_not_kept"] is True
    with pytest.raises(IdempotencyResultNotKeptError):
        work(ORDER, LambdaContext(clock=bench.clock))
    assert runs.count == 1


def test_killed_between_the_object_and_the_record_the_next_attempt_has_an_object_of_its_own(
    bench: Bench, form: Form, shelf: Shelf
) -> None:
    second = {"by": incompressible(600_000)}
    runs = Runs(LARGE, second)
    work = form.function(runs, bench.store, keyed(lease_seconds=60))
    bench.client.at("update_item", 1, refused(Suspended()))
    with pytest.raises(Suspended):
        work(ORDER)

    bench.clock.advance(ms=61_001)

    assert [work(ORDER), work(ORDER)] == [second, second]
    assert runs.count == 2
    assert len(shelf.objects) == 2


def test_a_completion_with_a_place_whose_answer_is_lost_is_settled(bench: Bench, form: Form, shelf: Shelf) -> None:
    bench.client.at("update_item", 1, lost(read_timeout()))
    runs = Runs(LARGE)
    work = form.function(runs, bench.store)

    assert [work(ORDER), work(ORDER)] == [LARGE, LARGE]
    assert runs.count == 1


def test_a_claim_that_vanished_is_restored_with_its_place(bench: Bench, form: Form, shelf: Shelf) -> None:
    def vanish() -> Any:
        bench.direct.delete_item(TableName=bench.store.table_name, Key={"id": {"S": KEY}})
        return LARGE

    runs = Runs(vanish)
    work = form.function(runs, bench.store)

    assert [work(ORDER), work(ORDER)] == [LARGE, LARGE]
    assert runs.count == 1


def test_a_late_attempt_cannot_touch_the_winners_object(bench: Bench, form: Form, shelf: Shelf) -> None:
    """The loser uploads its own, and then learns that it lost; both callers get the winner's result."""
    won = {"by": incompressible(600_000)}
    winner = form.handler(Runs(won), bench.store)
    events: list[Any] = []

    def outlive(_event: Any) -> Any:
        bench.clock.advance(ms=31_001)
        assert winner(ORDER, LambdaContext(clock=bench.clock)) == won
        return LARGE

    loser = form.handler(outlive, bench.store, keyed(observers=[events.append]))

    assert loser(ORDER, LambdaContext(remaining_ms=30_000, clock=bench.clock)) == won
    assert winner(ORDER, LambdaContext(clock=bench.clock)) == won
    assert len(shelf.objects) == 2
    assert any(isinstance(event, LeaseLost) for event in events)


def test_a_late_attempt_that_cannot_read_the_winners_result_says_that_its_lease_is_lost(
    bench: Bench, form: Form, shelf: Shelf
) -> None:
    winner = form.handler(Runs(LARGE), bench.store)

    def outlive(_event: Any) -> Any:
        bench.clock.advance(ms=31_001)
        winner(ORDER, LambdaContext(clock=bench.clock))
        shelf.before_get = raiser(access_denied)
        return SMALL

    loser = form.handler(outlive, bench.store)
    with pytest.raises(IdempotencyLeaseLostError, match="The function ran, but its lease had ended"):
        loser(ORDER, LambdaContext(remaining_ms=30_000, clock=bench.clock))


def test_two_runs_of_one_durable_execution_do_not_spoil_each_others_place(bench: Bench, shelf: Shelf) -> None:
    """Both bear one token; the second dies after its object and before its record, and the first one's place still holds."""
    other = {"by": incompressible(600_000)}
    runs = Runs(raise_suspended, LARGE, other)
    work = idempotent(lambda event, context: runs(event), persistence_store=bench.store, config=keyed(), key_prefix="job")
    with pytest.raises(Suspended):
        work(ORDER, durable(bench.clock, "a"))
    assert work(ORDER, durable(bench.clock, "a", replay=True)) == LARGE
    record = bench.store.fetch(KEY)

    body = f'{{"by": "{incompressible(600_000)}"}}'
    bench.client.at("update_item", 1, refused(Suspended()))
    with pytest.raises(Suspended):
        bench.store.complete(record.replace(response_data=body, packed_result=None))

    assert work(ORDER, durable(bench.clock, "b")) == LARGE


# Downloads that go wrong


def test_a_result_that_cannot_be_read_now_is_an_error_now_and_a_replay_later(bench: Bench, form: Form, shelf: Shelf) -> None:
    runs, events = Runs(LARGE), []
    work = form.function(runs, bench.store, keyed(observers=[events.append]))
    work(ORDER)
    shelf.before_get = raiser(access_denied)

    with pytest.raises(IdempotencyPersistenceLayerError, match="^Failed to load the stored result - .*AccessDenied") as caught:
        work(ORDER)
    assert f"Idempotency key: {KEY}. The function ran before and was not run again; " in str(caught.value)
    assert caught.value.function_ran
    assert caught.value.__cause__ is not None
    assert [event.reason for event in events if isinstance(event, Refused)] == ["result not loaded"]

    shelf.before_get = lambda: None
    assert work(ORDER) == LARGE
    assert runs.count == 1
    assert isinstance(events[-1], Replayed)


def test_a_download_is_retried_and_never_beyond_the_deadline(bench: Bench, form: Form, shelf: Shelf) -> None:
    work = form.handler(Runs(LARGE), bench.store)
    work(ORDER, LambdaContext(clock=bench.clock))
    shelf.before_get = raiser(slow_down)
    deadline_ms = bench.clock() + 1_000

    with pytest.raises(IdempotencyPersistenceLayerError, match="SlowDown"):
        work(ORDER, LambdaContext(remaining_ms=1_000, clock=bench.clock))
    assert deadline_ms - 200 < bench.clock() < deadline_ms
    assert len(shelf.gets) > 3


def test_a_result_whose_object_is_gone_does_not_make_the_function_run_again(bench: Bench, form: Form, shelf: Shelf) -> None:
    runs = Runs(LARGE)
    work = form.function(runs, bench.store)
    work(ORDER)
    shelf.objects.clear()

    with pytest.raises(IdempotencyResultNotKeptError, match=f"{KEY}, but its result is no longer at shelf://"):
        work(ORDER)
    assert runs.count == 1


def test_no_error_and_no_log_shows_a_result(bench: Bench, form: Form, shelf: Shelf, caplog: pytest.LogCaptureFixture) -> None:
    secret = "4111 1111 1111 1111 " * 30_000
    large_results(bench, compression=None, offload=shelf)
    work = form.function(Runs(secret), bench.store)
    work(ORDER)
    [(location, body)] = shelf.objects.items()
    shelf.objects[location] = body[:-2] + b'2"'

    for ours in ("persistence", "idempotency"):
        caplog.set_level("DEBUG", ours)
    with pytest.raises(IdempotencyResultNotKeptError) as caught:
        work(ORDER)

    assert "4111" not in "".join(traceback.format_exception(caught.value))
    assert "4111" not in caplog.text


def test_async_callers_load_at_the_same_time(bench: Bench, shelf: Shelf) -> None:
    """A download does not hold the event loop up: all of them are under way before the first one ends."""
    work = idempotent_function(data_keyword_argument="event", persistence_store=bench.store, config=keyed())(_large)
    awaited(work(event=ORDER))
    shelf.before_get = Barrier(5, timeout=30).wait

    async def all_at_once() -> list[Any]:
        return await asyncio.gather(*(work(event=ORDER) for _ in range(5)))

    assert awaited(all_at_once()) == [LARGE] * 5


async def _large(event: Any) -> Any:
    return LARGE
