"""A throttled table: what the error says, what observers are told, and how a server's wish for a pause is obeyed.

The answers are written as the service writes them, and read by botocore and by the lean client, because their parsers are part of
the story.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from botocore.awsrequest import AWSResponse
from doubles import LambdaContext
from engines.tables import client_for, lean_client_for
from fault.proxy import FaultProxy, Harm
from faults import KEY, ORDER, Form, Suspended, keyed, raise_boom, raise_suspended
from stores import dynamodb, dynamodb_composite

from idempotency import DynamoDBPersistenceLayer, IdempotencyPersistenceLayerError
from idempotency.events import Claimed, Completed, LeaseLost, Released, Replayed, TakenOver, Throttled, Waited
from persistence._lean_transport import Answer
from persistence.lean import LeanClient
from persistence.threaded import ThreadedPersistenceLayer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from doubles import FakeClock
    from stores import Made

TABLE = "arn:aws:dynamodb:us-east-1:000000000000:table/idempotency"
HOT, FULL = "TableWriteKeyRangeThroughputExceeded", "TableWriteProvisionedThroughputExceeded"
HOT_INDEX = "IndexWriteKeyRangeThroughputExceeded"
MESSAGE = "The level of configured provisioned throughput for the table was exceeded."

ONE_KEY = ": one key is hot; a partition serves 1,000 write and 3,000 read units a second."
ONE_PARTITION = (
    ": a hot partition. All records of id='idempotency#payments' share one partition key value, and with it 1,000 write and "
    "3,000 read units a second; a table without a sort key, or several values of static_pk_value, would spread them."
)


class Body:
    """The part of urllib3's answer that botocore reads."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def stream(self) -> Iterator[bytes]:
        yield self._content


class Throttler:
    """Stands between a client and the wire, and answers some requests itself.

    Attributes:
        code: The error's name.
        reasons: (reason, resource) of each answer, None for an answer without.
        spelling: How the answer spells the list of reasons.
        wish: The header x-amz-retry-after, None for none.
    """

    def __init__(self, client: Any) -> None:
        self.code = "ProvisionedThroughputExceededException"
        self.reasons: list[tuple[str, str]] | None = [(HOT, TABLE)]
        self.spelling = "ThrottlingReasons"
        self.wish: str | None = None
        self._left: dict[str, float] = {}
        if isinstance(client, LeanClient):
            self._pool, client._pool = client._pool, self
        else:
            client.meta.events.register("before-send.dynamodb", self._answer)

    def throttle(self, operation: str, times: float = float("inf")) -> None:
        """Answer so many requests of the operation."""
        self._left[operation] = times

    def exchange(self, head: bytes, body: bytes) -> Answer:
        """In place of the lean client's connections."""
        operation = head.decode().partition("X-Amz-Target: DynamoDB_20120810.")[2].partition("\r\n")[0]
        told = self._told(operation)
        if told is None:
            return self._pool.exchange(head, body)
        headers, content = told
        return Answer(400, {name.lower(): value for name, value in headers.items()}, content)

    def close(self) -> None:
        self._pool.close()

    def _answer(self, request: Any, **_: Any) -> AWSResponse | None:
        target = request.headers["X-Amz-Target"]
        told = self._told((target if isinstance(target, str) else target.decode()).partition(".")[2])
        return None if told is None else AWSResponse(request.url, 400, told[0], Body(told[1]))

    def _told(self, operation: str) -> tuple[dict[str, str], bytes] | None:
        """The headers and the body of an answer; None if the request goes its way."""
        if not self._left.get(operation):
            return None
        self._left[operation] -= 1
        body: dict[str, Any] = {"__type": f"com.amazonaws.dynamodb.v20120810#{self.code}", "message": MESSAGE}
        if self.reasons is not None:
            body[self.spelling] = [{"reason": reason, "resource": resource} for reason, resource in self.reasons]
        headers = {"content-type": "application/x-amz-json-1.0"}
        if self.wish is not None:
            headers["X-Amz-Retry-After"] = self.wish
        return headers, json.dumps(body).encode()


class Bench:
    """A store whose requests are throttled, and what its callers and observers hear."""

    def __init__(self, made: Made, clock: FakeClock, client_kind: str) -> None:
        assert isinstance(made.store, DynamoDBPersistenceLayer)
        new_client = lean_client_for if client_kind == "lean" else client_for
        made.store.client = new_client(made.client.meta.endpoint_url)  # one of its own, to be throttled
        self.store, self.peek, self.clock = made.store, made.peek, clock
        self.service = Throttler(made.store.client)
        self.events: list[Any] = []

    def call(
        self,
        form: Form,
        work: Callable[[], Any] = lambda: "paid",
        *,
        remaining_ms: int = 30_000,
        store: Any = None,
        **options: Any,
    ) -> Any:
        config = keyed(observers=[self.events.append], **options)
        handler = form.handler(lambda _event: work(), store or self.store, config)
        return handler(ORDER, LambdaContext(remaining_ms=remaining_ms, clock=self.clock))

    def told(self) -> list[Any]:
        """The events, each throttle with its operation and number."""
        return [(event.operation, event.requests) if isinstance(event, Throttled) else type(event) for event in self.events]


@pytest.fixture
def bench(dynamodb_local: str, clock: FakeClock, client_kind: str) -> Iterator[Bench]:
    made_bench = Bench(dynamodb(clock, dynamodb_local), clock, client_kind)
    yield made_bench
    made_bench.store.client.close()


@pytest.fixture
def composite(dynamodb_local: str, clock: FakeClock, client_kind: str) -> Iterator[Bench]:
    made_bench = Bench(dynamodb_composite(clock, dynamodb_local), clock, client_kind)
    yield made_bench
    made_bench.store.client.close()


def failure(bench: Bench, form: Form, remaining_ms: int = 1_000, **more: Any) -> IdempotencyPersistenceLayerError:
    with pytest.raises(IdempotencyPersistenceLayerError) as caught:
        bench.call(form, remaining_ms=remaining_ms, **more)
    return caught.value


# The text


SPELLINGS = [
    ("ProvisionedThroughputExceededException", "ThrottlingReasons"),
    ("RequestLimitExceeded", "ThrottlingReasons"),
    ("ThrottlingException", "throttlingReasons"),
]


@pytest.mark.parametrize(("code", "spelling"), SPELLINGS)
def test_the_error_of_a_throttled_claim_names_the_reason_and_the_resource(
    bench: Bench, form: Form, code: str, spelling: str
) -> None:
    bench.service.code, bench.service.spelling, bench.service.reasons = code, spelling, [(FULL, TABLE)]
    bench.service.throttle("PutItem")

    error = failure(bench, form)

    assert str(error) == (
        "Failed to save in progress record to idempotency store - "
        f"(An error occurred ({code}) when calling the PutItem operation: {MESSAGE}). Table {bench.store.table_name} in "
        f"us-east-1. Throttled for {FULL} of {TABLE}. Idempotency key: {KEY}. The function was not run; retry the call."
    )
    assert error.is_retryable


@pytest.mark.parametrize(
    ("reasons", "simple", "partition"),
    [
        ([(HOT, TABLE)], f"Throttled for {HOT} of {TABLE}{ONE_KEY}", f"Throttled for {HOT} of {TABLE}{ONE_PARTITION}"),
        ([(FULL, TABLE)], f"Throttled for {FULL} of {TABLE}.", f"Throttled for {FULL} of {TABLE}."),
        (
            [(FULL, TABLE), (HOT, TABLE)],
            f"Throttled for {FULL} of {TABLE} and {HOT} of {TABLE}{ONE_KEY}",
            f"Throttled for {FULL} of {TABLE} and {HOT} of {TABLE}{ONE_PARTITION}",
        ),
        # The partition that is hot is one of the user's own index, by an attribute of which nothing is known here.
        ([(HOT_INDEX, f"{TABLE}/index/by-status")], *[f"Throttled for {HOT_INDEX} of {TABLE}/index/by-status."] * 2),
    ],
    ids=["hot", "full", "both", "hot index"],
)
def test_a_hot_partition_is_named_as_such_with_what_it_means_for_the_tables_layout(
    bench: Bench, composite: Bench, form: Form, reasons: list[tuple[str, str]], simple: str, partition: str
) -> None:
    for place, text in ((bench, simple), (composite, partition)):
        place.service.reasons = reasons
        place.service.throttle("PutItem")

        assert f"{MESSAGE}). Table {place.store.table_name} in us-east-1. {text} Idempotency key: " in str(failure(place, form))


@pytest.mark.parametrize("reasons", [None, []], ids=["no list", "empty list"])
def test_without_reasons_the_text_names_the_table_only(bench: Bench, form: Form, reasons: list[tuple[str, str]] | None) -> None:
    bench.service.reasons = reasons
    bench.service.throttle("PutItem")

    error = failure(bench, form)

    assert str(error) == (
        f"Failed to save in progress record to idempotency store - ({error.__cause__}). Table {bench.store.table_name} in "
        f"us-east-1. Idempotency key: {KEY}. The function was not run; retry the call."
    )


def test_any_other_errors_reasons_are_not_told(bench: Bench, form: Form) -> None:
    bench.service.code = "ValidationException"
    bench.service.throttle("PutItem")

    error = failure(bench, form)

    assert "Throttled" not in str(error)
    assert str(error).endswith("The function was not run; a retry does not help until this is corrected.")


def test_a_throttled_completion_and_a_throttled_read_name_their_reasons_too(bench: Bench, form: Form) -> None:
    bench.service.throttle("UpdateItem")
    completion = failure(bench, form)
    assert str(completion).startswith("Failed to update record state to success in idempotency store - ")
    assert f" Throttled for {HOT} of {TABLE}{ONE_KEY} Idempotency key: " in str(completion)

    bench.service.throttle("GetItem")
    read = failure(bench, form, 500, store=fake_sleeper(bench, form), wait_for_in_progress_seconds=60)
    assert str(read).startswith("Failed to get record from idempotency store - ")
    assert f" Throttled for {HOT} of {TABLE}{ONE_KEY} Idempotency key: " in str(read)


def test_a_throttled_release_names_its_reasons_in_the_log(bench: Bench, form: Form, caplog: pytest.LogCaptureFixture) -> None:
    bench.service.throttle("DeleteItem")
    with pytest.raises(OSError, match="boom"):
        bench.call(form, raise_boom, remaining_ms=1_000)

    [said] = caplog.messages
    assert f" Throttled for {HOT} of {TABLE}{ONE_KEY} Idempotency key: {KEY}. " in said


# The event


def fake_sleeper(bench: Bench, form: Form) -> Any:
    """The bench's store; for async functions awaited in such a way that its sleeps are the fake clock's."""
    if not form.is_async:
        return bench.store

    class Awaited(ThreadedPersistenceLayer):
        async def sleep_ms(self, ms: float) -> None:
            bench.clock.sleep_ms(ms)

    return Awaited(bench.store)


def test_a_call_whose_throttles_end_is_told_with_them_before_each_outcome(bench: Bench, form: Form) -> None:
    bench.service.throttle("PutItem", 3)
    bench.service.throttle("UpdateItem", 2)

    assert bench.call(form) == "paid"
    assert bench.told() == [("PutItem", 3), Claimed, ("UpdateItem", 2), Completed]
    assert (bench.events[0].key, bench.events[0].reasons) == (KEY, (HOT,))
    assert bench.events[0].at_ms == bench.events[1].at_ms > bench.clock.now_ms - 30_000


def test_a_throttled_duplicate_is_told_before_its_replay(bench: Bench, form: Form) -> None:
    bench.call(form)
    bench.events.clear()
    bench.service.throttle("PutItem", 1)

    assert bench.call(form) == "paid"
    assert bench.told() == [("PutItem", 1), Replayed]


def test_a_throttled_release_is_told_before_the_release(bench: Bench, form: Form) -> None:
    bench.service.throttle("DeleteItem", 2)
    with pytest.raises(OSError, match="boom"):
        bench.call(form, raise_boom)

    assert bench.told() == [Claimed, ("DeleteItem", 2), Released]


def test_a_throttled_read_of_a_waiting_call_is_told_before_the_wait(bench: Bench, form: Form) -> None:
    with pytest.raises(Suspended):
        bench.call(form, raise_suspended)
    bench.events.clear()
    bench.service.throttle("GetItem", 2)
    with pytest.raises(Exception, match="Execution already in progress"):
        bench.call(form, store=fake_sleeper(bench, form), remaining_ms=20_000, wait_for_in_progress_seconds=5)

    assert bench.told()[:2] == [("GetItem", 2), Waited]


def test_a_throttled_takeover_is_told_before_it(bench: Bench, form: Form) -> None:
    with pytest.raises(Suspended):
        bench.call(form, raise_suspended)
    bench.clock.advance(ms=31_001)
    bench.events.clear()
    bench.service.throttle("PutItem", 1)

    assert bench.call(form) == "paid"
    assert bench.told() == [("PutItem", 1), TakenOver, Claimed, Completed]


def test_a_throttled_completion_that_is_fenced_in_the_end_is_told_before_the_lost_lease(bench: Bench, form: Form) -> None:
    def late() -> str:
        bench.clock.advance(ms=31_001)
        assert form.handler(lambda _event: "winner's", bench.store)(ORDER, LambdaContext(clock=bench.clock)) == "winner's"
        bench.service.throttle("UpdateItem", 1)
        return "late"

    # Without the invocation's deadline, which is over, the completion may be repeated.
    function = form.function(lambda _event: late(), bench.store, keyed(lease_seconds=30, observers=[bench.events.append]))

    assert function(ORDER) == "winner's"
    assert bench.told() == [Claimed, ("UpdateItem", 1), LeaseLost]


@pytest.mark.parametrize("operation", ["PutItem", "UpdateItem"])
def test_throttles_without_end_are_told_with_the_number_of_requests(bench: Bench, form: Form, operation: str) -> None:
    bench.service.throttle(operation)
    failure(bench, form)

    assert bench.told()[-1][0] == operation
    assert bench.told()[-1][1] > 1


def test_different_reasons_are_told_once_each(bench: Bench, form: Form) -> None:
    bench.service.reasons = [(FULL, TABLE), (HOT, TABLE), (HOT, TABLE)]
    bench.service.throttle("PutItem", 2)
    bench.call(form)

    assert bench.events[0].reasons == (FULL, HOT)


def test_a_throttle_without_reasons_is_told_all_the_same(bench: Bench, form: Form) -> None:
    bench.service.reasons = None
    bench.service.throttle("PutItem", 1)
    bench.call(form)

    assert (bench.events[0].operation, bench.events[0].reasons) == ("PutItem", ())


def test_a_request_that_the_function_itself_sends_to_its_store_is_not_told(bench: Bench, form: Form) -> None:
    def work() -> str:
        bench.service.throttle("GetItem", 2)
        assert bench.store.fetch("another key") is None
        return "paid"

    bench.call(form, work)

    assert bench.told() == [Claimed, Completed]


# The wish for a pause


@pytest.mark.parametrize("wish_ms", [700, 3_000])
def test_a_wish_of_the_service_is_obeyed(bench: Bench, form: Form, wish_ms: int) -> None:
    bench.service.wish = str(wish_ms)
    bench.service.throttle("PutItem", 2)

    assert bench.call(form) == "paid"
    assert bench.clock.slept_ms == [wish_ms, wish_ms]


def test_a_wish_beyond_five_seconds_is_cut(bench: Bench, form: Form) -> None:
    bench.service.wish = "3600000"
    bench.service.throttle("PutItem", 1)
    bench.call(form)

    assert 5_000 <= bench.clock.slept_ms[0] <= 5_050


@pytest.mark.parametrize("remaining_ms", [1_000, 2_500])
def test_a_wish_does_not_lead_beyond_the_deadline(bench: Bench, form: Form, remaining_ms: int) -> None:
    bench.service.wish = "4000"
    bench.service.throttle("PutItem")
    start_ms = bench.clock()
    failure(bench, form, remaining_ms)

    assert bench.clock() == start_ms + remaining_ms - 100


@pytest.mark.parametrize("wish", ["", "soon", "-4000", "4.5", "Wed, 21 Oct 2026 07:28:00 GMT"])
def test_a_wish_that_is_no_number_is_ignored(bench: Bench, form: Form, wish: str) -> None:
    bench.service.wish = wish
    bench.service.throttle("PutItem", 1)

    assert bench.call(form) == "paid"
    assert 0 <= bench.clock.slept_ms[0] <= 50


# Over a connection


@pytest.fixture
def proxy(dynamodb_local: str) -> Iterator[FaultProxy]:
    proxy = FaultProxy(dynamodb_local)
    yield proxy
    proxy.stop()


def test_a_client_that_the_library_makes_reads_reasons_and_wish_off_the_wire(
    proxy: FaultProxy, clock: FakeClock, dynamodb_local: str, form: Form, client_kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = dynamodb(clock, dynamodb_local)
    assert isinstance(made.store, DynamoDBPersistenceLayer)
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", proxy.url)
    store = DynamoDBPersistenceLayer(made.store.table_name, client=client_kind)
    store.clock_ms, store.sleep_ms = clock, clock.sleep_ms
    proxy.harm("PutItem", 1, Harm.THROTTLE, retry_after_ms=800)
    events: list[Any] = []
    handler = form.handler(lambda _event: "paid", store, keyed(observers=[events.append]))

    assert handler(ORDER, LambdaContext(clock=clock)) == "paid"
    assert clock.slept_ms == [800]
    assert isinstance(events[0], Throttled)
    assert (events[0].operation, events[0].requests, events[0].reasons) == ("PutItem", 1, (HOT,))
    assert (proxy.calls["PutItem"], proxy.repetitions) == (2, 0)
