"""Threads that cannot start, coroutines that are closed, functions that fork, renewals that meet a completion."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from behaviour.kit import PREFIX, CountingStore, Form, Work, key_of

from idempotency import (
    AsyncCachePersistenceLayer,
    CachePersistenceLayer,
    IdempotencyConfig,
    IdempotencyPersistenceLayerError,
    idempotent_function,
)
from persistence import background
from persistence.scope import innermost_scope
from persistence.threaded import ThreadedPersistenceLayer

if TYPE_CHECKING:
    from collections.abc import Callable

    from doubles import FakeClock

REAL_WORKERS = background.renewal_workers  # which the fixture `heart` replaces
KEY = key_of("o-1")


@pytest.fixture
def store(clock: FakeClock) -> CountingStore:
    return CountingStore(clock_ms=clock)


def unstartable(*_: object) -> threading.Thread:
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("is_async", [False, True])
def test_a_call_whose_lease_no_thread_can_renew_is_not_run_and_frees_its_key(
    store: CountingStore, heart: background.Heartbeat, monkeypatch: pytest.MonkeyPatch, is_async: bool
) -> None:
    """The next call tries again."""
    work = Work("done")
    function = Form("idempotent_function", is_async).decorate(work, store)
    new_thread = background._new_thread

    def only_store_threads(target: Any, arguments: Any, name: str) -> threading.Thread:
        return unstartable() if name == "idempotency-heartbeat" else new_thread(target, arguments, name)

    heart._thread = None
    with monkeypatch.context() as patch:
        patch.setattr(background, "_new_thread", only_store_threads)
        for _ in range(2):
            with pytest.raises(IdempotencyPersistenceLayerError, match="No thread could be started"):
                function("o-1")
            assert store._records == {}
            assert heart._leases == set()
    assert work.runs == []

    heart._thread = threading.current_thread()
    assert function("o-1") == "done"


def test_an_async_call_without_any_thread_fails_before_anything_is_written(
    store: CountingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work("done")
    function = Form("idempotent_function", is_async=True).decorate(work, store)

    with monkeypatch.context() as patch:
        patch.setattr(background, "_new_thread", unstartable)
        with pytest.raises(IdempotencyPersistenceLayerError, match="No thread could be started"):
            function("o-1")

    assert function("o-2") == "done"  # its workers would have made the first claim, too
    assert store._records.keys() == {key_of("o-2")}


def test_a_coroutine_that_is_closed_while_a_thread_is_started_releases_its_key_and_blocks_nobody(
    store: CountingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The garbage collector may close it at any line: here, in the very call that starts a worker."""
    started = asyncio.Event()

    @idempotent_function(data_keyword_argument="order", persistence_store=store, key_prefix=PREFIX)
    async def function(order: str) -> None:
        if order == "o-1":
            started.set()
            await asyncio.get_running_loop().create_future()

    async def story() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda *_: None)  # it reports tasks that are destroyed, which this is about
        left = loop.create_task(function(order="o-1"))
        await started.wait()
        del left
        new_thread = background._new_thread

        def collecting(*arguments: Any) -> threading.Thread:
            gc.collect()
            return new_thread(*arguments)

        monkeypatch.setattr(background, "_new_thread", collecting)
        await asyncio.gather(*[function(order=f"other {number}") for number in range(8)])
        while KEY in store._records:
            await function(order="o-2")

    with monkeypatch.context() as patch:
        patch.setattr(background, "CALL_WORKERS", 40)
        asyncio.run(asyncio.wait_for(story(), 30))


def test_a_coroutine_that_is_closed_while_it_claims_releases_its_key(clock: FakeClock) -> None:
    claiming, may_go_on, released = threading.Event(), threading.Event(), threading.Event()

    class Slow(CountingStore):
        def _put_record(self, data_record: Any) -> Any:
            claiming.set()
            may_go_on.wait(30)
            return super()._put_record(data_record)

        def _delete_record(self, data_record: Any) -> None:
            super()._delete_record(data_record)
            released.set()

    store = Slow(clock_ms=clock)

    @idempotent_function(data_keyword_argument="order", persistence_store=store, key_prefix=PREFIX)
    async def function(order: str) -> None:
        raise AssertionError("it is closed before")

    async def story() -> None:
        calling: Any = function(order="o-1")
        calling.send(None)
        await asyncio.to_thread(claiming.wait, 30)
        calling.close()
        may_go_on.set()
        await asyncio.to_thread(released.wait, 30)

    asyncio.run(asyncio.wait_for(story(), 30))
    assert store._records == {}


def test_a_coroutine_that_is_closed_after_its_loop_has_ended_is_closed_quietly(store: CountingStore) -> None:
    kept: list[Any] = []

    @idempotent_function(data_keyword_argument="order", persistence_store=store, key_prefix=PREFIX)
    async def function(order: str) -> None:
        await asyncio.sleep(0)

    async def story() -> None:
        calling: Any = function(order="o-1")
        calling.send(None)
        kept.append(calling)

    asyncio.run(story())
    kept.pop().close()


# A renewal that is under way when the function ends


class Plain:
    """A client with nothing but get, set and delete, in which a renewal can be held between its reading and its writing."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.renewing, self.may_go_on = threading.Event(), threading.Event()
        self.holds_next_set = False

    def get(self, name: str, /) -> str | None:
        return self.texts.get(name)

    def set(self, name: str, value: str, ex: Any = None, px: Any = None, nx: bool = False) -> bool:
        if self.holds_next_set:
            self.holds_next_set = False
            self.renewing.set()
            self.may_go_on.wait(30)
        if nx and name in self.texts:
            return False
        self.texts[name] = value
        return True

    def delete(self, name: str, /) -> int:
        return int(self.texts.pop(name, None) is not None)


class AsyncPlain:
    """The same, awaited."""

    def __init__(self) -> None:
        self.plain = Plain()
        self.renewing, self.may_go_on = asyncio.Event(), asyncio.Event()
        self.holds_next_set = False

    async def get(self, name: str, /) -> str | None:
        return self.plain.get(name)

    async def set(self, name: str, value: str, **options: Any) -> bool:
        if self.holds_next_set:
            self.holds_next_set = False
            self.renewing.set()
            await self.may_go_on.wait()
        return self.plain.set(name, value, **options)

    async def delete(self, name: str, /) -> int:
        return self.plain.delete(name)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("fails", [False, True], ids=["returns", "fails"])
def test_a_renewal_that_is_under_way_overwrites_no_completion_and_no_release(
    clock: FakeClock, heart: background.Heartbeat, monkeypatch: pytest.MonkeyPatch, is_async: bool, fails: bool
) -> None:
    """A client without scripts reads the record and then writes it."""
    monkeypatch.setattr(background, "renewal_workers", REAL_WORKERS)
    client = Plain()
    store = CachePersistenceLayer(client=client)
    store.clock_ms = clock

    def begin_renewal() -> None:
        client.holds_next_set = True
        clock.advance(ms=20_000)
        heart.beat()
        assert client.renewing.wait(30)
        waits = background.Lease.when_idle

        def waiting(lease: background.Lease, call: Callable[[], object]) -> None:
            waits(lease, call)
            client.may_go_on.set()  # only now, when the library waits for the renewal

        monkeypatch.setattr(background.Lease, "when_idle", waiting)
        if fails:
            raise ValueError

    function = Form("idempotent_function", is_async).decorate(lambda _event: begin_renewal(), store)
    with suppress(ValueError):
        function("o-1")
    client.may_go_on.set()
    for workers in (background.renewal_workers(store), background.call_workers(store)):
        while not workers.is_idle:
            threading.Event().wait(0.001)

    assert ("COMPLETED" in client.texts.get(KEY, "")) is not fails
    assert ("INPROGRESS" in client.texts.get(KEY, "")) is False


@pytest.mark.parametrize("fails", [False, True], ids=["returns", "fails"])
def test_a_renewal_by_the_loop_that_is_under_way_overwrites_nothing(
    clock: FakeClock, heart: background.Heartbeat, fails: bool
) -> None:
    async def story() -> str:
        client = AsyncPlain()
        store = AsyncCachePersistenceLayer(client=client)
        store.clock_ms = clock

        @idempotent_function(data_keyword_argument="order", persistence_store=store, key_prefix=PREFIX)
        async def function(order: str) -> None:
            client.holds_next_set = True
            clock.advance(ms=20_000)
            heart.beat()
            await client.renewing.wait()
            asyncio.get_running_loop().call_soon(client.may_go_on.set)
            if fails:
                raise ValueError

        with suppress(ValueError):
            await function(order="o-1")
        return client.plain.texts.get(KEY, "")

    text = asyncio.run(asyncio.wait_for(story(), 30))

    assert ("COMPLETED" in text) is not fails
    assert "INPROGRESS" not in text


@pytest.mark.parametrize("is_async", [False, True])
def test_a_renewal_that_hangs_holds_no_completion_up_for_ever(
    clock: FakeClock,
    heart: background.Heartbeat,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    is_async: bool,
) -> None:
    monkeypatch.setattr("idempotency.drivers.GIVE_UP_MS", 1)
    monkeypatch.setattr(background, "renewal_workers", REAL_WORKERS)
    client = Plain()
    store = CachePersistenceLayer(client=client)
    store.clock_ms = clock

    def begin_renewal(_event: Any) -> None:
        client.holds_next_set = True
        clock.advance(ms=20_000)
        heart.beat()
        assert client.renewing.wait(30)

    Form("idempotent_function", is_async).decorate(begin_renewal, store)("o-1")
    assert "COMPLETED" in client.texts[KEY]
    client.may_go_on.set()

    assert [f"{KEY} hangs" in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize("trouble", [None, ConnectionError("reset")], ids=["well", "badly"])
def test_a_loop_renews_the_lease_of_its_own_calls(
    clock: FakeClock, heart: background.Heartbeat, trouble: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        client = AsyncPlain()
        store = AsyncCachePersistenceLayer(client=client)
        store.clock_ms = clock

        @idempotent_function(data_keyword_argument="order", persistence_store=store, key_prefix=PREFIX)
        async def function(order: str) -> None:
            before = client.plain.texts[KEY]
            clock.advance(ms=20_000)
            if trouble is not None:
                get, client.plain.get = client.plain.get, failing(trouble)  # type: ignore[method-assign]
            heart.beat()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            if trouble is not None:
                client.plain.get = get  # type: ignore[method-assign]
            assert (client.plain.texts[KEY] == before) is (trouble is not None)

        await function(order="o-1")
        assert "COMPLETED" in client.plain.texts[KEY]

    asyncio.run(asyncio.wait_for(story(), 30))

    assert ["was not renewed" in record.getMessage() for record in caplog.records] == [True] * (trouble is not None)


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*_: object) -> Any:
        raise error

    return fail


def test_a_lease_that_a_loop_finds_lost_is_renewed_no_more(clock: FakeClock, heart: background.Heartbeat) -> None:
    async def story() -> None:
        client = AsyncPlain()
        store = AsyncCachePersistenceLayer(client=client)
        store.clock_ms = clock

        @idempotent_function(data_keyword_argument="order", persistence_store=store, key_prefix=PREFIX)
        async def function(order: str) -> None:
            del client.plain.texts[KEY]
            clock.advance(ms=20_000)
            heart.beat()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert heart._leases == set()

        await function(order="o-1")

    asyncio.run(asyncio.wait_for(story(), 30))


# A function that forks


def test_a_forked_child_writes_nothing_of_its_parents_record() -> None:
    """The child returns through the call, or leaves by an error: the claim is the parent's, which still runs."""
    story = """
import os, sys, warnings
from idempotency import IdempotencyConfig, InMemoryPersistenceLayer, idempotent_function
from idempotency.drivers import background

warnings.simplefilter("ignore")  # of forking with threads
parent = os.getpid()

class Store(InMemoryPersistenceLayer):
    def _update_record(self, data_record):
        if os.getpid() != parent:
            os._exit(77)
        super()._update_record(data_record)

    _delete_record = _update_record

store = Store()

@idempotent_function(data_keyword_argument="order", persistence_store=store)
def function(order):
    if os.fork() == 0:
        if order == "fails":
            raise ValueError("of the child")
        if order == "exits":
            raise SystemExit(3)
        return "of the child"
    return "of the parent"

for order in ("returns", "fails", "exits"):
    try:
        answer = function(order=order)
    except (ValueError, SystemExit) as error:
        os._exit(10)
    if os.getpid() != parent:
        os._exit(0 if answer == "of the child" else 1)
    assert answer == "of the parent"
    assert os.waitstatus_to_exitcode(os.wait()[1]) == (0 if order == "returns" else 10), order
    assert function(order=order) == "of the parent"
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", story], env=environment, capture_output=True, text=True, timeout=50, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")


def test_a_forked_child_of_an_async_function_writes_nothing(store: CountingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here, only the count of forks changes: a loop must not be used in a child."""

    @idempotent_function(data_keyword_argument="order", persistence_store=store, config=IdempotencyConfig(), key_prefix=PREFIX)
    async def function(order: str) -> str:
        monkeypatch.setattr(background, "fork_count", background.fork_count + 1)
        return "of the child"

    assert asyncio.run(function(order="o-1")) == "of the child"
    assert store._records[KEY].stored_status == "INPROGRESS"


@pytest.mark.parametrize("is_async", [False, True])
def test_a_forked_child_gives_up_nothing_of_its_parents(
    store: CountingStore, monkeypatch: pytest.MonkeyPatch, is_async: bool
) -> None:
    def fork_while_claiming(data_record: Any) -> Any:
        monkeypatch.setattr(background, "fork_count", background.fork_count + 1)
        raise SystemExit if not is_async else ConnectionError

    monkeypatch.setattr(store, "_put_record", fork_while_claiming)
    with pytest.raises((SystemExit, IdempotencyPersistenceLayerError)):
        Form("idempotent_function", is_async).decorate(Work(), store)("o-1")

    assert store.asked == []


def test_a_coroutine_of_the_parent_that_a_child_collects_keeps_its_claim(
    store: CountingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        started = asyncio.Event()

        @idempotent_function(data_keyword_argument="order", persistence_store=store, key_prefix=PREFIX)
        async def function(order: str) -> None:
            started.set()
            await asyncio.get_running_loop().create_future()

        asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # a task whose coroutine is closed is reported
        calling = asyncio.ensure_future(function(order="o-1"))
        await started.wait()
        monkeypatch.setattr(background, "fork_count", background.fork_count + 1)
        calling.get_coro().close()  # type: ignore[union-attr]
        monkeypatch.undo()
        while not background.call_workers(store).is_idle:
            await asyncio.to_thread(threading.Event().wait, 0.001)

    asyncio.run(asyncio.wait_for(story(), 30))

    assert "delete" not in store.asked


# Stores that ignore owner tokens


class Tokenless(CountingStore):
    """As a layer written for Powertools: a release deletes whatever is there."""

    supports_leases = False

    def _delete_record(self, data_record: Any) -> None:  # type: ignore[override]  # Powertools' hook returns nothing
        self.asked.append("delete")
        self._records.pop(data_record.key, None)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_claim_that_was_not_granted_is_never_released_where_tokens_are_ignored(clock: FakeClock, is_async: bool) -> None:
    store = Tokenless(clock_ms=clock)
    function = Form("idempotent_function", is_async).decorate(Work("paid"), store)
    assert function("o-1") == "paid"
    put = store._put_record
    store._put_record = failing(ConnectionError("reset"))  # type: ignore[method-assign]
    with pytest.raises(IdempotencyPersistenceLayerError):
        function("o-1")

    store._put_record = put  # type: ignore[method-assign]
    assert store._records[KEY].stored_status == "COMPLETED"
    assert function("o-1") == "paid"


def test_a_call_that_is_cancelled_while_another_attempt_runs_leaves_its_record_alone(clock: FakeClock) -> None:
    store = Tokenless(clock_ms=clock)

    async def story() -> None:
        started, may_end = asyncio.Event(), asyncio.Event()

        @idempotent_function(data_keyword_argument="order", persistence_store=store, key_prefix=PREFIX)
        async def function(order: str) -> str:
            started.set()
            await may_end.wait()
            return "paid"

        first = asyncio.ensure_future(function(order="o-1"))
        await started.wait()
        second: Any = function(order="o-1")
        second.send(None)
        second.close()
        with suppress(TimeoutError):
            await asyncio.wait_for(function(order="o-1"), 0)
        may_end.set()
        assert await first == "paid"

    asyncio.run(asyncio.wait_for(story(), 30))
    assert "delete" not in store.asked


def test_a_call_that_is_cancelled_while_it_is_refused_leaves_the_record_alone(clock: FakeClock) -> None:
    refusing, may_refuse = threading.Event(), threading.Event()

    class Slow(Tokenless):
        def _put_record(self, data_record: Any) -> Any:
            if self._records:
                refusing.set()
                may_refuse.wait(30)
            return super()._put_record(data_record)

    store = Slow(clock_ms=clock)

    async def story() -> None:
        started, may_end = asyncio.Event(), asyncio.Event()

        @idempotent_function(data_keyword_argument="order", persistence_store=store, key_prefix=PREFIX)
        async def function(order: str) -> str:
            started.set()
            await may_end.wait()
            return "paid"

        first = asyncio.ensure_future(function(order="o-1"))
        await started.wait()
        second = asyncio.ensure_future(function(order="o-1"))
        await asyncio.to_thread(refusing.wait, 30)
        second.cancel()
        asyncio.get_running_loop().call_soon(may_refuse.set)
        with pytest.raises(asyncio.CancelledError):
            await second
        may_end.set()
        assert await first == "paid"

    asyncio.run(asyncio.wait_for(story(), 30))
    assert "delete" not in store.asked


# The ends of loops and closed coroutines


def test_a_coroutine_that_is_closed_while_it_waits_for_another_attempt_releases_nothing(clock: FakeClock) -> None:
    async def story() -> None:
        store, waiting = CountingStore(clock_ms=clock), asyncio.Event()

        async def wait(_ms: float) -> None:
            waiting.set()
            await asyncio.get_running_loop().create_future()

        started, may_end = asyncio.Event(), asyncio.Event()

        @idempotent_function(
            data_keyword_argument="order",
            persistence_store=store,
            config=IdempotencyConfig(wait_for_in_progress_seconds=5),
            key_prefix=PREFIX,
        )
        async def function(order: str) -> str:
            started.set()
            await may_end.wait()
            return "paid"

        asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # a task whose coroutine is closed is reported
        first = asyncio.ensure_future(function(order="o-1"))
        await started.wait()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ThreadedPersistenceLayer, "sleep_ms", lambda _store, ms: wait(ms))
            second = asyncio.ensure_future(function(order="o-1"))
            await waiting.wait()
            second.get_coro().close()  # type: ignore[union-attr]
        may_end.set()
        assert await first == "paid"
        assert "delete" not in store.asked

    asyncio.run(asyncio.wait_for(story(), 30))


def test_a_renewal_by_the_loop_that_comes_after_the_end_is_not_made(clock: FakeClock, heart: background.Heartbeat) -> None:
    async def story() -> None:
        client = AsyncPlain()
        store = AsyncCachePersistenceLayer(client=client)
        store.clock_ms = clock

        @idempotent_function(data_keyword_argument="order", persistence_store=store, key_prefix=PREFIX)
        async def function(order: str) -> None:
            clock.advance(ms=20_000)
            heart.beat()  # its task begins after the function has returned

        await function(order="o-1")
        assert "COMPLETED" in client.plain.texts[KEY]

    asyncio.run(asyncio.wait_for(story(), 30))


def test_the_end_of_a_loop_loses_no_result(clock: FakeClock) -> None:
    """`asyncio.run` cancels every task that is left, those of writes included."""
    completing, may_go_on = threading.Event(), threading.Event()

    class Slow(CountingStore):
        def _update_record(self, data_record: Any) -> None:
            completing.set()
            may_go_on.wait(30)
            super()._update_record(data_record)

    store = Slow(clock_ms=clock)

    @idempotent_function(data_keyword_argument="order", persistence_store=store, key_prefix=PREFIX)
    async def function(order: str) -> str:
        return "paid"

    async def story() -> None:
        story.left = asyncio.ensure_future(function(order="o-1"))  # type: ignore[attr-defined]
        await asyncio.to_thread(completing.wait, 30)
        asyncio.get_running_loop().call_later(0, may_go_on.set)

    asyncio.run(story())

    assert store._records[KEY].stored_status == "COMPLETED"


def test_the_end_of_a_loop_loses_no_result_of_a_native_store(clock: FakeClock) -> None:
    """Its write is a task of that loop, which is cancelled with all others."""
    client = AsyncPlain()
    store = AsyncCachePersistenceLayer(client=client)
    store.clock_ms = clock
    kept: list[Any] = []

    @idempotent_function(data_keyword_argument="order", persistence_store=store, key_prefix=PREFIX)
    async def function(order: str) -> str:
        client.holds_next_set = True
        return "paid"

    async def story() -> None:
        kept.append(asyncio.ensure_future(function(order="o-1")))
        await client.renewing.wait()  # its completion is under way

    asyncio.run(story())

    assert "COMPLETED" in client.plain.texts[KEY]


def test_a_renewal_that_meets_its_own_attempts_completion_is_no_lost_lease(
    clock: FakeClock, heart: background.Heartbeat, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(background, "renewal_workers", REAL_WORKERS)
    renewing, may_renew = threading.Event(), threading.Event()

    class Slow(CountingStore):
        def _update_record(self, data_record: Any) -> None:
            if data_record.stored_status == "INPROGRESS":
                renewing.set()
                may_renew.wait(30)
            super()._update_record(data_record)
            if data_record.stored_status == "COMPLETED":
                may_renew.set()
                while not background.renewal_workers(self).is_idle:
                    threading.Event().wait(0.001)

    store = Slow(clock_ms=clock)

    def run(_event: Any) -> None:
        clock.advance(ms=20_000)
        heart.beat()
        assert renewing.wait(30)

    Form("idempotent_function", is_async=False).decorate(run, store)("o-1")

    assert caplog.records == []


def test_a_function_that_turns_the_closing_of_its_coroutine_into_its_own_error_releases_its_key(clock: FakeClock) -> None:
    class OwnError(Exception):
        pass

    released = threading.Event()

    class Deleting(CountingStore):
        def _delete_record(self, data_record: Any) -> bool:
            deleted = super()._delete_record(data_record)
            released.set()
            return bool(deleted)

    store = Deleting(clock_ms=clock)

    async def story() -> None:
        started = asyncio.Event()

        @idempotent_function(data_keyword_argument="order", persistence_store=store, key_prefix=PREFIX)
        async def function(order: str) -> None:
            started.set()
            try:
                await asyncio.get_running_loop().create_future()
            except BaseException as error:
                raise OwnError from error

        asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # a task whose coroutine is closed is reported
        calling = asyncio.ensure_future(function(order="o-1"))
        await started.wait()
        with pytest.raises(OwnError):
            calling.get_coro().close()  # type: ignore[union-attr]
        await asyncio.to_thread(released.wait, 30)

    asyncio.run(asyncio.wait_for(story(), 30))
    assert store._records == {}


def test_a_claim_that_takes_longer_than_a_cancelled_caller_can_wait_is_given_up_later(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("idempotency.drivers.GIVE_UP_MS", 1)
    claiming, may_go_on, released = threading.Event(), threading.Event(), threading.Event()

    class Slow(CountingStore):
        def _put_record(self, data_record: Any) -> Any:
            claiming.set()
            may_go_on.wait(30)
            return super()._put_record(data_record)

        def _delete_record(self, data_record: Any) -> bool:
            deleted = super()._delete_record(data_record)
            released.set()
            return bool(deleted)

    store = Slow(clock_ms=clock)

    @idempotent_function(data_keyword_argument="order", persistence_store=store, key_prefix=PREFIX)
    async def function(order: str) -> None:
        raise AssertionError("it is cancelled before")

    async def story() -> None:
        calling = asyncio.ensure_future(function(order="o-1"))
        await asyncio.to_thread(claiming.wait, 30)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        may_go_on.set()
        await asyncio.to_thread(released.wait, 30)

    asyncio.run(asyncio.wait_for(story(), 30))
    assert store._records == {}


def test_a_renewal_whose_task_is_cancelled_before_it_begins_is_made_again(clock: FakeClock, heart: background.Heartbeat) -> None:
    async def story() -> None:
        client = AsyncPlain()
        store = AsyncCachePersistenceLayer(client=client)
        store.clock_ms = clock

        @idempotent_function(data_keyword_argument="order", persistence_store=store, key_prefix=PREFIX)
        async def function(order: str) -> None:
            before = client.plain.texts[KEY]
            me = asyncio.current_task()
            clock.advance(ms=20_000)
            heart.beat()
            asyncio.get_running_loop().call_soon(lambda: [task.cancel() for task in asyncio.all_tasks() - known])
            known = {*asyncio.all_tasks(), me}
            for _ in range(3):
                await asyncio.sleep(0)
            assert client.plain.texts[KEY] == before
            clock.advance(ms=20_000)
            heart.beat()
            for _ in range(5):
                await asyncio.sleep(0)
            assert client.plain.texts[KEY] != before

        await function(order="o-1")

    asyncio.run(asyncio.wait_for(story(), 30))


# Claims that are refused


def test_a_refused_call_that_fails_later_releases_nothing(clock: FakeClock) -> None:
    """The record is another attempt's."""

    class Failing(CountingStore):
        def _get_record(self, idempotency_key: str) -> Any:
            self.asked.append("get")
            raise ConnectionError

    store = Failing(clock_ms=clock)
    store.sleep_ms = clock.sleep_ms
    config = IdempotencyConfig(wait_for_in_progress_seconds=5)
    waiting = Form("idempotent_function", is_async=False).decorate(Work(), store, config)

    def run(_event: Any) -> None:
        with pytest.raises(IdempotencyPersistenceLayerError):
            waiting("o-1")

    Form("idempotent_function", is_async=False).decorate(run, store)("o-1")

    assert store.asked == ["put", "put", "get", "update"]


@pytest.mark.parametrize("error", [None, ValueError()], ids=["returns", "fails"])
def test_the_child_of_a_function_that_forked_gets_what_its_own_run_came_to(
    store: CountingStore, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    def fork(_event: Any) -> str:
        monkeypatch.setattr(background, "fork_count", background.fork_count + 1)
        if error is not None:
            raise error
        return "of the child"

    function = Form("idempotent_function", is_async=False).decorate(fork, store)
    answers: list[str] = []
    with suppress(ValueError):
        answers.append(function("o-1"))

    assert answers == (["of the child"] if error is None else [])
    assert store.asked == ["put"]


@pytest.mark.parametrize("trouble", [None, ConnectionError("reset")], ids=["well", "badly"])
def test_the_loop_releases_the_key_of_a_coroutine_that_is_closed(
    clock: FakeClock, trouble: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> str:
        client, started, released = AsyncPlain(), asyncio.Event(), asyncio.Event()
        store = AsyncCachePersistenceLayer(client=client)
        store.clock_ms = clock
        store.sleep_ms = fast  # type: ignore[method-assign]
        release = store.release

        async def noting(record: Any) -> bool:
            try:
                if trouble is not None:
                    raise trouble
                return await release(record)
            finally:
                asyncio.get_running_loop().call_soon(released.set)

        store.release = noting  # type: ignore[method-assign]

        @idempotent_function(data_keyword_argument="order", persistence_store=store, key_prefix=PREFIX)
        async def function(order: str) -> None:
            started.set()
            await asyncio.get_running_loop().create_future()

        asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # a task whose coroutine is closed is reported
        calling = asyncio.ensure_future(function(order="o-1"))
        await started.wait()
        calling.get_coro().close()  # type: ignore[union-attr]
        await released.wait()
        await asyncio.sleep(0)
        return client.plain.texts.get(KEY, "")

    async def fast(_ms: float) -> None: ...

    text = asyncio.run(asyncio.wait_for(story(), 30))

    assert bool(text) is (trouble is not None)
    assert ["was not released" in record.getMessage() for record in caplog.records] == [True] * (trouble is not None)


@pytest.mark.parametrize("store_is_async", [False, True])
def test_nothing_is_released_by_a_loop_that_is_closed(clock: FakeClock, store_is_async: bool) -> None:
    client = AsyncPlain()
    asynchronous = AsyncCachePersistenceLayer(client=client)
    asynchronous.clock_ms = clock
    store: Any = asynchronous if store_is_async else CountingStore(clock_ms=clock)
    kept: list[Any] = []

    async def story() -> None:
        started = asyncio.Event()

        @idempotent_function(data_keyword_argument="order", persistence_store=store, key_prefix=PREFIX)
        async def function(order: str) -> None:
            started.set()
            await asyncio.get_running_loop().create_future()

        calling: Any = function(order="o-1")
        waiting = asyncio.ensure_future(calling)
        await started.wait()
        kept.extend([calling, waiting])

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # a task that is left behind is reported
    loop.run_until_complete(story())
    loop.close()
    kept[0].close()
    kept.clear()
    gc.collect()


@pytest.mark.parametrize("is_async", [False, True])
def test_a_signal_that_comes_while_a_call_is_left_leaves_nothing_of_it(
    store: CountingStore, monkeypatch: pytest.MonkeyPatch, is_async: bool
) -> None:
    from idempotency import handler

    leave, left = handler._leave, []

    def interrupted(*arguments: Any) -> None:
        left.append("left")
        if len(left) == 1:
            raise KeyboardInterrupt
        leave(*arguments)

    monkeypatch.setattr(handler, "_leave", interrupted)
    function = Form("idempotent_function", is_async).decorate(Work("done"), store)
    with pytest.raises(KeyboardInterrupt):
        function("o-1")

    assert left == ["left", "left"]
    assert innermost_scope() is None
