"""What is promised of each `ResultOffload`: on moto's S3, and of the one in memory that other tests use."""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import count
from threading import Barrier, Thread
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.exceptions import ClientError, IncompleteReadError
from botocore.response import StreamingBody
from doubles import FakeClock, Shelf

from idempotency import S3ResultOffload
from persistence._procedures import run
from persistence._retries import Retries, sending
from persistence.offload import CONNECT_TIMEOUT, READ_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from persistence.offload import ResultOffload

_buckets = count(1)


@dataclass
class Place:
    """An offload, and what it keeps, read and deleted without it."""

    offload: ResultOffload
    read: Callable[[str], bytes]
    delete: Callable[[str], object]


def s3_client(endpoint: str) -> Any:
    return boto3.client("s3", endpoint_url=endpoint, config=Config(s3={"addressing_style": "path"}))


@pytest.fixture
def bucket(moto_server: str) -> tuple[Any, str]:
    client, name = s3_client(moto_server), f"results-{os.getpid()}-{next(_buckets)}"
    client.create_bucket(Bucket=name)
    return client, name


@pytest.fixture(params=["memory", pytest.param("s3", marks=pytest.mark.moto)])
def place(request: pytest.FixtureRequest) -> Place:
    if request.param == "memory":
        shelf = Shelf()
        return Place(shelf, shelf.objects.__getitem__, shelf.objects.pop)
    client, name = request.getfixturevalue("bucket")

    def of(location: str) -> dict[str, str]:
        assert location.startswith(f"s3://{name}/results/")
        return {"Bucket": name, "Key": location.removeprefix(f"s3://{name}/")}

    return Place(
        S3ResultOffload(name, "results/", boto3_client=client),
        lambda location: client.get_object(**of(location))["Body"].read(),
        lambda location: client.delete_object(**of(location)),
    )


# Every offload


@pytest.mark.parametrize("body", [b"{}", bytes(range(256)) * 8192], ids=["small", "2 MB of every byte"])
def test_a_body_is_kept_byte_for_byte(place: Place, body: bytes) -> None:
    location = place.offload.put(name="key/token-digest", body=body)

    assert place.read(location) == body
    assert place.offload.get(location=location, at_most=len(body)) == body


def test_names_keep_bodies_apart_and_a_repetition_changes_nothing(place: Place) -> None:
    first = place.offload.put(name="key/a-1", body=b"first")
    second = place.offload.put(name="key/b-2", body=b"second")

    assert place.offload.put(name="key/a-1", body=b"first") == first
    assert [place.offload.get(location=location, at_most=9) for location in (first, second)] == [b"first", b"second"]


def test_of_a_body_that_is_too_long_only_one_byte_more_is_read(place: Place) -> None:
    location = place.offload.put(name="key/a-1", body=b"x" * 100_000)

    assert place.offload.get(location=location, at_most=10) == b"x" * 11


def test_what_is_gone_is_a_lookup_error(place: Place) -> None:
    location = place.offload.put(name="key/a-1", body=b"{}")
    place.delete(location)

    with pytest.raises(LookupError):
        place.offload.get(location=location, at_most=2)


# S3


@pytest.mark.parametrize("location", ["", "s3://", "s3://bucket", "s3:///key", "https://bucket/key", "bucket/key"])
def test_what_names_no_object_is_a_lookup_error(location: str) -> None:
    with pytest.raises(LookupError, match="is no place in S3$"):
        S3ResultOffload("bucket", boto3_client=object()).get(location, 1)  # type: ignore[arg-type]  # not even asked


def test_an_object_is_read_from_the_bucket_that_it_was_written_to(bucket: tuple[Any, str]) -> None:
    """Also after the store has been given another bucket or prefix."""
    client, name = bucket
    location = S3ResultOffload(name, "old/", boto3_client=client).put("key/a-1", b"{}")

    assert S3ResultOffload("another-bucket", "new/", boto3_client=client).get(location, 2) == b"{}"


def test_a_missing_bucket_is_a_lookup_error_on_reading_and_its_own_error_on_writing(bucket: tuple[Any, str]) -> None:
    client, _ = bucket
    offload = S3ResultOffload("no-such-bucket-of-ours", boto3_client=client)

    with pytest.raises(LookupError, match="^s3://no-such-bucket-of-ours/key is gone$"):
        offload.get("s3://no-such-bucket-of-ours/key", 1)
    with pytest.raises(client.exceptions.NoSuchBucket):
        offload.put("key", b"{}")


def test_another_error_of_s3_is_raised_as_it_is() -> None:
    denied = ClientError({"Error": {"Code": "AccessDenied", "Message": "Access Denied"}}, "GetObject")

    class Denying:
        def get_object(self, **_: Any) -> Any:
            raise denied

    with pytest.raises(ClientError) as caught:
        S3ResultOffload("bucket", boto3_client=Denying()).get("s3://bucket/key", 1)  # type: ignore[arg-type]  # a double
    assert caught.value is denied


def test_further_arguments_reach_s3(bucket: tuple[Any, str]) -> None:
    client, name = bucket
    sent: list[dict[str, Any]] = []
    client.meta.events.register("before-parameter-build.s3.*", lambda params, **_: sent.append(dict(params)))
    offload = S3ResultOffload(
        name,
        boto3_client=client,
        put_options={"ServerSideEncryption": "AES256"},
        get_options={"ExpectedBucketOwner": "123456789012"},
    )

    offload.get(offload.put("key", b"{}"), 2)

    assert sent[0] == {"Bucket": name, "Key": "key", "Body": b"{}", "ServerSideEncryption": "AES256"}
    assert sent[1] == {"Bucket": name, "Key": "key", "ExpectedBucketOwner": "123456789012"}


class Cut:
    """An S3 client whose answers end early, as a connection that breaks does."""

    def __init__(self, sent: bytes, announced: int) -> None:
        self.sent, self.announced = sent, announced

    def get_object(self, **_: Any) -> dict[str, Any]:
        from io import BytesIO

        return {"Body": StreamingBody(BytesIO(self.sent), self.announced), "ContentLength": self.announced}


@pytest.mark.parametrize(("sent", "at_most"), [(b"12345", 9), (b"", 9), (b"12345", 5)])
def test_a_cut_answer_is_an_error_of_the_moment_and_not_an_altered_object(sent: bytes, at_most: int) -> None:
    offload = S3ResultOffload("bucket", boto3_client=Cut(sent, 9))  # type: ignore[arg-type]  # a double

    with pytest.raises(IncompleteReadError):
        offload.get("s3://bucket/key", at_most)


def test_an_offload_needs_a_bucket() -> None:
    for bucket in ("", None):
        with pytest.raises(ValueError, match="^bucket must be a bucket's name, not "):
            S3ResultOffload(bucket)  # type: ignore[arg-type]


def test_a_given_client_tries_once_while_the_store_retries(bucket: tuple[Any, str]) -> None:
    """The SDK knows no deadline."""
    client, name = bucket
    tries: list[str] = []

    def busy(request: Any, **_: Any) -> AWSResponse:
        tries.append(request.method)
        return AWSResponse(request.url, 503, {}, SlowDown())

    client.meta.events.register("before-send.s3", busy)
    clock = FakeClock()
    put = S3ResultOffload(name, boto3_client=client).put
    putting = Retries(clock, None).answer(sending, put, {"name": "key", "body": b"{}"})
    with pytest.raises(ClientError, match="SlowDown"):
        run(putting, clock.sleep_ms)
    assert tries == ["PUT"]


class SlowDown:
    """The content of S3's answer to too many requests."""

    def stream(self) -> Iterator[bytes]:
        yield b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


def test_its_repr_names_the_place_and_no_credential() -> None:
    assert repr(S3ResultOffload("bucket", "results/")) == "S3ResultOffload(bucket='bucket', prefix='results/')"


def test_its_own_client_has_short_timeouts_and_names_the_library() -> None:
    config = S3ResultOffload("bucket").client.meta.config  # type: ignore[attr-defined]  # boto3's

    assert (config.connect_timeout, config.read_timeout) == (CONNECT_TIMEOUT, READ_TIMEOUT)
    assert "lambda-idempotency" in config.user_agent_extra


def test_its_clients_settings_can_be_overridden() -> None:
    session = boto3.Session(region_name="eu-west-1")
    offload = S3ResultOffload("bucket", boto_config=Config(read_timeout=30), boto3_session=session)

    assert offload.client.meta.config.read_timeout == 30  # type: ignore[attr-defined]
    assert offload.client.meta.config.connect_timeout == CONNECT_TIMEOUT  # type: ignore[attr-defined]
    assert offload.client.meta.region_name == "eu-west-1"  # type: ignore[attr-defined]


def test_threads_share_one_client() -> None:
    offload, barrier, clients = S3ResultOffload("bucket"), Barrier(4), []

    def ask() -> None:
        barrier.wait()
        clients.append(offload.client)

    threads = [Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len({id(client) for client in clients}) == 1


def test_a_thread_that_waited_while_another_made_the_client_makes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    offload, made_meanwhile = S3ResultOffload("bucket"), object()

    class Held:
        def __enter__(self) -> None:
            offload.client = made_meanwhile  # type: ignore[assignment]

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr("persistence.offload._client_lock", Held())

    assert offload.client is made_meanwhile
