"""The built functions in Lambda's runtime, with DynamoDB Local as the store: killed, timed out, frozen, and many at once.

More of it: `pytest tests/e2e/test_runtime.py --chaos-attempts=10000 --chaos-seed=1`.  See docs/faults.md.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from threading import Barrier
from typing import TYPE_CHECKING, Any

import pytest
from engines.plugin import entered
from engines.tables import create_table, shared_client
from stack import artifact as stack_artifact
from stack.deliveries import DECK, Bills, Job, Orders, Payments, Sample, Story, Tables, recorded
from stack.local_lambda import Answer, Function, Invocation, Settings, function
from stack.mishaps import Mishap, Mishaps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

#: Where nothing is to run out of time, on a busy machine either.
AMPLE_SECONDS = 30
#: Where a lease is to end, which it does one second later.
BRIEF_SECONDS = 3
#: The same where a request is not answered: less than the 2 s after which the library repeats it.
SILENT_SECONDS = 1.5
#: The same in stories of many deliveries, which bear it if an invocation is too slow.
STORY_SECONDS = 1
ENVIRONMENTS = 4
#: How often each event is delivered.
TIMES = 3
#: How many deliveries a story has to bring to success, and for how many of --chaos-attempts it stands: a process that is killed
#: takes long to replace.
DELIVERIES = {"PaymentsFunction": 210, "OrdersFunction": 210, "BillsFunction": 90}
ROUND = 2_250
SAMPLES = (Payments(), Orders(), Bills())


def new_tables(endpoint: str) -> Tables:
    client = shared_client(endpoint)
    return Tables(client, create_table(client), create_table(client, sort_key_attr="sort"), create_table(client))


def settings(sample: Sample, task_root: Path, tables: Tables, mishaps: Mishaps, **others: Any) -> Settings:
    """What template.yaml says of a function, but for its name and its limits."""
    variables = {
        **tables.variables,
        "AWS_ENDPOINT_URL_DYNAMODB": mishaps.url,
        "POWERTOOLS_SERVICE_NAME": "payments",
        "POWERTOOLS_METRICS_NAMESPACE": "IdempotentPayments",
    }
    return Settings(handler=sample.handler, task_root=task_root, variables=variables, **others)


@pytest.fixture
def tables(dynamodb_local: str) -> Tables:
    return new_tables(dynamodb_local)


@pytest.fixture
def mishaps(dynamodb_local: str) -> Iterator[Mishaps]:
    with closing(Mishaps(dynamodb_local)) as mishaps:
        yield mishaps


@pytest.fixture
def deploy(artifact: Path, tables: Tables, mishaps: Mishaps, tmp_path: Path) -> Iterator[Callable[..., Function]]:
    """Deploys a function of the sample.  What its environments have written is shown if the test fails."""
    with ExitStack() as stack:

        def deploy(
            sample: Sample,
            task_root: Path | None = None,
            *,
            name: str = "deployed",
            concurrency: int = 1,
            timeout_seconds: float = AMPLE_SECONDS,
        ) -> Function:
            root = task_root or artifact / sample.function_name
            limits = {"concurrency": concurrency, "timeout_seconds": timeout_seconds}
            said = settings(sample, root, tables, mishaps, name=name, **limits)
            made = entered(stack, function(said, tmp_path / name), "Lambda's runtime")
            stack.callback(lambda: print(made.log()))  # noqa: T201 - pytest shows it if the test fails
            return made

        yield deploy


def only(sample: Sample, name: str) -> dict[str, Any]:
    """An event with one job in it."""
    return sample.event([Job(name, 0, sample.orders(name))])


def bodies(answers: list[Answer]) -> set[str]:
    return {answer.payload["body"] for answer in answers}


def until_not_in_progress(deployed: Function, event: dict[str, Any]) -> Answer:
    """Deliver until no other attempt is at it.  A lease has no other way to say that it has ended."""
    answer = deployed.invoke(event)
    while answer.payload["statusCode"] == 409:
        answer = deployed.invoke(event)
    return answer


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.function_name)
def test_a_function_needs_nothing_but_its_artifact(deploy: Callable[..., Function], tables: Tables, sample: Sample) -> None:
    deployed = deploy(sample)
    job = Job("o-1", 0, sample.orders("o-1"))

    answer = deployed.invoke(sample.event([job]))

    assert [outcome.kind for outcome in sample.outcomes([job], answer)] == ["done"]
    assert tables.charges(job.orders) == {order: [1] for order in job.orders}


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.function_name)
def test_a_function_that_is_deployed_anew_under_another_name_repeats_nothing(
    deploy: Callable[..., Function], tables: Tables, sample: Sample
) -> None:
    """CloudFormation makes up a function's name, and Powertools' keys begin with it."""
    job = Job("o-1", 0, sample.orders("o-1"))
    deploy(sample, name="stack-Function-1").invoke(sample.event([job]))

    deploy(sample, name="stack-Function-2").invoke(sample.event([job]))

    assert tables.charges(job.orders) == {order: [1] for order in job.orders}


def test_a_function_does_not_start_if_its_artifact_lacks_a_package(
    deploy: Callable[..., Function], artifact: Path, tmp_path: Path
) -> None:
    """Nothing of the repository, or of the tests' own environment, makes up for it."""
    deployed = deploy(Payments(), stack_artifact.without(artifact / "PaymentsFunction", tmp_path / "lacking", "persistence"))

    answer = deployed.invoke(only(Payments(), "o-1"))

    assert answer.error_type == "Runtime.ExitError"
    assert "No module named 'persistence'" in deployed.log()


def test_events_as_aws_sends_them_are_charged_once_and_answered_the_same(deploy: Callable[..., Function], tables: Tables) -> None:
    payments, orders, bills = (deploy(sample) for sample in SAMPLES)

    paid = [payments.invoke(recorded("http_api_payment")) for _ in range(2)]
    batches = [orders.invoke(recorded("sqs_orders")) for _ in range(2)]
    split = [bills.invoke(recorded("http_api_bill")) for _ in range(2)]

    assert [answer.payload["statusCode"] for answer in [*paid, *split]] == [201] * 4
    assert [answer.payload["headers"].get("idempotent-replayed") for answer in paid] == [None, "true"]
    assert len(bodies(paid)) == len(bodies(split)) == 1
    assert [answer.payload for answer in batches] == [{"batchItemFailures": []}] * 2
    charged = ["o-1001", "o-2001", "o-2002", "b-7/alice", "b-7/bob", "b-7/carol"]
    assert tables.charges(charged) == {order: [1] for order in charged}


#: What happens at which request of a payment, which are the claim, the charge and the completion; and how often the charge is
#: asked for until a retry has succeeded.
STOPS = {
    (Mishap.KILLED_BEFORE, 1): 1,
    (Mishap.KILLED_AFTER, 1): 1,
    (Mishap.KILLED_BEFORE, 2): 1,
    (Mishap.KILLED_AFTER, 2): 2,
    (Mishap.KILLED_BEFORE, 3): 2,
    (Mishap.KILLED_AFTER, 3): 1,
    (Mishap.TIMED_OUT, 1): 1,
    (Mishap.TIMED_OUT, 2): 2,
    (Mishap.TIMED_OUT, 3): 1,
}


@dataclass(frozen=True)
class Stopped:
    """What became of a payment that was stopped: its answer, those of two retries after its lease, and its charges."""

    answer: Answer
    retries: list[Answer]
    charges: list[int]


@pytest.fixture(scope="module")
def stopped(
    artifact: Path, dynamodb_local: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[tuple[Mishap, int], Stopped]]:
    """By what stopped it.  All of them are stopped at the same time, to save some."""
    sample, tables = Payments(), new_tables(dynamodb_local)
    with ExitStack() as stack:
        mishaps = stack.enter_context(closing(Mishaps(dynamodb_local)))
        limits = {"concurrency": len(STOPS), "timeout_seconds": SILENT_SECONDS}
        said = settings(sample, artifact / sample.function_name, tables, mishaps, name="stopped", **limits)
        deployed = entered(stack, function(said, tmp_path_factory.mktemp("stopped") / "log"), "Lambda's runtime")
        deployed.warm()

        def stop(mishap: Mishap, at_request: int) -> Stopped:
            name = f"{mishap} {at_request}"
            event = only(sample, name)
            invocation = Invocation(event)
            mishaps.plan(invocation, mishap, at_request)
            answer = deployed.run(invocation)
            retries = [until_not_in_progress(deployed, event), deployed.invoke(event)]
            return Stopped(answer, retries, tables.charges([name])[name])

        with ThreadPoolExecutor(len(STOPS)) as threads:
            yield dict(zip(STOPS, threads.map(stop, *zip(*STOPS, strict=True)), strict=True))
        assert tables.unfinished() == []


@pytest.mark.parametrize("stop", STOPS, ids=lambda stop: f"{stop[0].value} request {stop[1]}")
def test_a_payment_that_is_stopped_is_made_once_when_its_lease_has_ended(
    stopped: dict[tuple[Mishap, int], Stopped], stop: tuple[Mishap, int]
) -> None:
    payment = stopped[stop]

    assert payment.answer.error_type == ("Sandbox.Timedout" if stop[0] is Mishap.TIMED_OUT else "Runtime.ExitError")
    assert [answer.payload["statusCode"] for answer in payment.retries] == [201, 201]
    assert len(bodies(payment.retries)) == 1
    assert payment.charges == [STOPS[stop]]


def test_a_payment_whose_provider_does_not_answer_in_time_is_refused_and_then_taken_over(
    deploy: Callable[..., Function], tables: Tables
) -> None:
    deployed, event = deploy(Payments(), concurrency=2, timeout_seconds=BRIEF_SECONDS), only(Payments(), "slow-1")
    deployed.warm()

    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(deployed.invoke, event)
        while not (tables.charges(["slow-1"])["slow-1"] or running.done()):
            pass  # the provider is about to charge
        refused = deployed.invoke(event)
        timed_out = running.result()
    taken_over = until_not_in_progress(deployed, event)

    assert timed_out.payload["errorMessage"].endswith("Task timed out after 3.00 seconds")
    assert refused.payload["statusCode"] == 409
    assert taken_over.payload["statusCode"] == 201
    assert tables.charges(["slow-1"]) == {"slow-1": [2]}


@pytest.mark.parametrize("at_request", [1, 2], ids=["before the charge", "before the completion"])
def test_a_payment_that_is_frozen_beyond_its_lease_changes_nothing_when_it_thaws(
    deploy: Callable[..., Function], mishaps: Mishaps, tables: Tables, at_request: int
) -> None:
    """It has asked for the charge, too, but under the same key."""
    deployed, event = deploy(Payments(), concurrency=2, timeout_seconds=BRIEF_SECONDS), only(Payments(), "o-1")
    deployed.warm()
    invocation = Invocation(event)
    plan = mishaps.plan(invocation, Mishap.FROZEN, at_request)
    with ThreadPoolExecutor(1) as threads:
        frozen = threads.submit(deployed.run, invocation)
        assert plan.is_met.wait(30)
        taken_over = until_not_in_progress(deployed, event)
        records = tables.records()
        assert invocation.environment is not None

        invocation.environment.thaw()

        late = frozen.result()
    assert taken_over.payload["statusCode"] == 201
    assert late.is_error or late.payload["body"] == taken_over.payload["body"]
    assert tables.records() == records
    assert tables.charges(["o-1"]) == {"o-1": [2]}


def test_of_many_environments_that_race_for_a_payment_one_makes_it(deploy: Callable[..., Function], tables: Tables) -> None:
    racers, rounds = 6, 15
    deployed = deploy(Payments(), concurrency=racers)
    deployed.warm()
    ready = Barrier(racers)

    def race(name: str) -> Answer:
        ready.wait()
        return deployed.invoke(only(Payments(), name))

    with ThreadPoolExecutor(racers) as threads:
        for number in range(rounds):
            answers = list(threads.map(race, [f"o-{number}"] * racers))

            statuses = [answer.payload["statusCode"] for answer in answers]
            assert set(statuses) <= {201, 409}
            made = [answer for answer in answers if answer.payload["statusCode"] == 201]
            assert len(bodies(made)) == 1
            assert sum("idempotent-replayed" not in answer.payload["headers"] for answer in made) == 1
    names = [f"o-{number}" for number in range(rounds)]
    assert tables.charges(names) == {name: [1] for name in names}


@dataclass(frozen=True)
class Broken:
    """A change of the artifact that breaks a promise.

    Attributes:
        symptom: What a story says of it, as a regular expression.
        deck: The mishaps by which it shows, when they happen between the charge and the completion.
    """

    module: str
    changes: dict[str, str]
    symptom: str
    deck: tuple[Mishap, ...]


KILLED = (Mishap.KILLED_AFTER,) * 10
FROZEN = (Mishap.FROZEN,) * 10
CLAIM = """self._claimed(offer),
            "ConditionExpression": "attribute_not_exists(#id)\""""
HELD = 'HELD: Final = "#owner_token = :owner_token"'
BROKEN = {
    "each attempt has a key of its own for the charge": Broken(
        "sample/payments.py",
        {"current_attempt().downstream_key": "__import__('uuid').uuid4().hex"},
        "was charged 2 times",
        KILLED,
    ),
    "the payment is not idempotent": Broken(
        "sample/payments.py",
        {
            "return pay(event, context)": "return pay.__wrapped__(event, context)",
            "current_attempt().downstream_key": "payment.order_id",
        },
        r"ran \d+ times, with \d disturbed attempts",
        (),
    ),
    "a claim is always granted": Broken(
        "persistence/_dynamodb_items.py",
        {CLAIM: CLAIM.replace("(#id)", "(#id) OR attribute_exists(#id)")},
        r"LeaseLost|ran \d times, with|two invocations",
        (),
    ),
    "a completion is always granted": Broken(
        "persistence/_dynamodb_items.py",
        {HELD: HELD.replace(':owner_token"', ':owner_token OR attribute_exists(#owner_token)"')},
        "was completed by two invocations",
        FROZEN,
    ),
    "a lease lasts a minute longer": Broken(
        "sample/payments.py",
        {"require_all_key_fields=True,": "require_all_key_fields=True, lease_margin_seconds=60,"},
        "was refused although its lease ends at",
        KILLED,
    ),
}


@pytest.fixture
def play(deploy: Callable[..., Function], mishaps: Mishaps, tables: Tables) -> Callable[..., Story]:
    def play(sample: Sample, seed: int, deliveries: int, deck: Sequence[Mishap], broken: Path | None = None) -> Story:
        deployed = deploy(sample, broken, concurrency=ENVIRONMENTS, timeout_seconds=STORY_SECONDS)
        deployed.warm()
        story = Story(sample, deployed, mishaps, tables, random.Random(seed))
        story.play([f"o-{number}" for number in range(deliveries // TIMES)], TIMES, deck, at_request=2 if broken else None)
        print(f"Seed {seed}: {story.report()}")  # noqa: T201 - pytest shows it if the test fails
        return story

    return play


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if {"seed", "sample"} <= set(metafunc.fixturenames):
        first, attempts = metafunc.config.getoption("chaos_seed"), metafunc.config.getoption("chaos_attempts")
        cases = [(first + number, sample) for number in range(-(-attempts // ROUND)) for sample in SAMPLES]
        metafunc.parametrize(("seed", "sample"), cases, ids=[f"{seed}-{sample.function_name}" for seed, sample in cases])


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_the_checker_finds_a_broken_artifact(
    pytestconfig: pytest.Config, play: Callable[..., Story], artifact: Path, tmp_path: Path, broken: Broken
) -> None:
    task_root = stack_artifact.changed(artifact / "PaymentsFunction", tmp_path / "broken", broken.module, broken.changes)

    story = play(Payments(), pytestconfig.getoption("chaos_seed"), 60, broken.deck, task_root)

    assert any(re.search(broken.symptom, violation) for violation in story.violations)


def test_in_chaos_each_order_is_charged_once_and_no_key_is_stuck_beyond_its_lease(
    play: Callable[..., Story], seed: int, sample: Sample
) -> None:
    deliveries = DELIVERIES[sample.function_name]
    deck = DECK * (deliveries // (10 * len(DECK)) or 1)

    story = play(sample, seed, deliveries, deck)

    assert story.violations == []
    assert story.mishaps.met == Counter(deck)
