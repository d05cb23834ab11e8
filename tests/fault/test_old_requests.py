"""A request that is too old, when its record vanishes, or requests and answers are lost, at the worst moment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from doubles import LambdaContext
from faults import KEY, ORDER, UNKNOWN_OUTCOMES, Bench, Form, Suspended, before, keyed, lost, raise_suspended, throttle

from idempotency import IdempotencyPersistenceLayerError, IdempotencyRequestTooOldError

if TYPE_CHECKING:
    from collections.abc import Callable

SYNC = Form(is_async=False)


class Story:
    """A request that is too old, and its deliveries."""

    def __init__(self, bench: Bench, form: Form) -> None:
        self.bench = bench
        self.form = form
        self.runs = 0
        self.payload = {**ORDER, "time": bench.clock.now_ms - 3_600_000}

    def deliver(self) -> Any:
        config = keyed(issued_at_jmespath="time", expires_after_seconds=3_600)
        handler = self.form.handler(self._run, self.bench.store, config)
        return handler(self.payload, LambdaContext(clock=self.bench.clock))

    def _run(self, _event: object) -> str:
        self.runs += 1
        return "paid"

    def leave_an_orphan(self) -> None:
        with pytest.raises(Suspended):
            SYNC.handler(lambda _event: raise_suspended(), self.bench.store)(ORDER, LambdaContext(1_000, clock=self.bench.clock))
        self.bench.clock.advance(ms=2_001)
        self.bench.client.requests.clear()

    def operations(self) -> list[str]:
        return [operation for operation, _ in self.bench.client.requests]

    def freeze_before_the_next_claim(self, ms: int) -> None:
        store, frozen = self.bench.store, iter([ms])
        offering = store._offer_record

        def offer(record: Any) -> Any:
            self.bench.clock.advance(ms=next(frozen, 0))
            return offering(record)

        store._offer_record = offer  # type: ignore[method-assign]

    def vanish(self) -> None:
        self.bench.direct.delete_item(TableName=self.bench.store.table_name, Key={"id": {"S": KEY}})


def after_refusal(happens: Callable[[], object]) -> Callable[[Callable[[], Any]], Any]:
    """Something happens between the refusal of a request and its answer."""

    def strike(send: Callable[[], Any]) -> Any:
        try:
            return send()
        finally:
            happens()

    return strike


@pytest.fixture
def story(bench: Bench, form: Form) -> Story:
    return Story(bench, form)


@pytest.mark.parametrize("read_first", [False, True])
def test_it_is_one_consistent_read_and_no_write(story: Story, read_first: bool) -> None:
    story.bench.store.read_first = read_first

    with pytest.raises(IdempotencyRequestTooOldError):
        story.deliver()

    [(operation, request)] = story.bench.client.requests
    assert (operation, request["ConsistentRead"]) == ("get_item", True)
    assert (story.runs, story.bench.peek(KEY)) == (0, None)


def test_a_read_that_fails_is_an_error_and_no_run(story: Story) -> None:
    story.bench.client.always("get_item", lost(throttle()))

    with pytest.raises(IdempotencyPersistenceLayerError, match="^Failed to get record from idempotency store"):
        story.deliver()
    assert (story.runs, set(story.operations())) == (0, {"get_item"})


def test_an_orphan_that_vanishes_before_the_claim_is_refused_and_nothing_is_written(story: Story) -> None:
    story.leave_an_orphan()
    story.bench.client.at("put_item", 1, before(story.vanish))

    with pytest.raises(IdempotencyRequestTooOldError):
        story.deliver()
    assert (story.runs, story.bench.peek(KEY)) == (0, None)
    assert story.operations() == ["get_item", "put_item", "get_item"]


def test_an_orphan_that_is_completed_before_the_claim_is_replayed(story: Story) -> None:
    def complete() -> None:
        record = story.bench.store.fetch(KEY)
        assert record is not None
        expiry_s = story.bench.clock.now_ms // 1000 + 3_600
        story.bench.store.complete(record.replace(status="COMPLETED", response_data='"late"', expiry_timestamp=expiry_s))

    story.leave_an_orphan()
    story.bench.client.at("put_item", 1, before(complete))

    assert story.deliver() == "late"
    assert story.runs == 0


@pytest.mark.parametrize("error", UNKNOWN_OUTCOMES)
def test_a_takeover_whose_answer_is_lost_is_recognised_and_runs_once(story: Story, error: Callable[[], Exception]) -> None:
    story.leave_an_orphan()
    story.bench.client.at("put_item", 1, lost(error()))

    assert story.deliver() == "paid"
    assert (story.runs, story.bench.peek(KEY)["status"], story.bench.peek(KEY)["generation"]) == (1, "COMPLETED", 2)


@pytest.mark.parametrize("error", UNKNOWN_OUTCOMES)
def test_a_takeover_whose_answer_is_lost_and_whose_record_vanishes_does_not_run(
    story: Story, error: Callable[[], Exception]
) -> None:
    """The repetition of the claim finds no record, and must not create one."""
    story.leave_an_orphan()
    story.bench.client.at("put_item", 1, lost(error()))
    story.bench.client.at("put_item", 2, before(story.vanish))

    with pytest.raises(IdempotencyRequestTooOldError):
        story.deliver()
    assert (story.runs, story.bench.peek(KEY)) == (0, None)


def test_a_request_that_becomes_too_old_before_it_is_claimed_takes_no_result_over_that_has_expired_by_then(
    story: Story,
) -> None:
    """A worker thread was busy, or the process was frozen, between the offer and the write."""
    bench = story.bench
    story.payload["time"] = bench.clock.now_ms
    story.deliver()
    before_it = bench.peek(KEY)
    bench.clock.advance(seconds=3_598)
    bench.client.requests.clear()
    story.freeze_before_the_next_claim(ms=3_000)

    with pytest.raises(IdempotencyRequestTooOldError):
        story.deliver()
    assert (story.runs, bench.peek(KEY)) == (1, before_it)
    assert story.operations() == ["put_item"]


def test_a_request_that_becomes_too_old_before_it_is_claimed_creates_no_record(story: Story) -> None:
    bench = story.bench
    story.payload["time"] = bench.clock.now_ms - 3_598_000
    story.freeze_before_the_next_claim(ms=3_000)

    with pytest.raises(IdempotencyRequestTooOldError):
        story.deliver()
    assert (story.runs, bench.peek(KEY)) == (0, None)


def test_a_refusal_whose_record_ages_before_it_is_judged_does_not_permit_a_run(story: Story) -> None:
    """The result refuses the claim in its last moment; when that is judged, it has expired, and the request is too old."""
    bench = story.bench
    story.payload["time"] = bench.clock.now_ms
    story.deliver()
    bench.clock.advance(seconds=3_599)
    claims = bench.client.count("put_item")
    bench.client.at("put_item", 1, after_refusal(lambda: bench.clock.advance(seconds=2)))

    with pytest.raises(IdempotencyRequestTooOldError):
        story.deliver()
    assert (story.runs, bench.client.count("put_item")) == (1, claims + 1)
