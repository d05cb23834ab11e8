"""Signatures against those of botocore's own signer, and the whole request against that of a real boto3 client."""

from __future__ import annotations

import random
import string
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import botocore.auth
import pytest
from boto3.session import Session
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials as BotocoreCredentials

from persistence._sigv4 import CONTENT_TYPE, Credentials, Signer, canonical_path

if TYPE_CHECKING:
    from collections.abc import Callable

REQUESTS = 4_000
#: The first seconds of days, a leap day and the one after it among them.
MIDNIGHTS = [
    int(datetime(*day, tzinfo=UTC).timestamp())
    for day in ((2026, 11, 22), (2027, 1, 1), (2028, 2, 29), (2028, 3, 1), (1970, 1, 2))
]
PATHS = ["/", "", "/prod", "/prod/", "//a//b", "/a/./b/../c", "/..", "/a%20b", "/ä b~c", "/a;b=c,d/$"]


@pytest.fixture
def botocore_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the clock of botocore's signer."""

    def set_to(now: float) -> None:
        frozen = datetime.fromtimestamp(int(now), UTC).replace(tzinfo=None)
        monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: frozen)

    return set_to


def by_botocore(credentials: Credentials, region: str, host: str, path: str, target: str, body: bytes) -> dict[str, str]:
    """The headers that botocore's signer adds to the request of botocore's DynamoDB client."""
    headers = {"X-Amz-Target": target, "Content-Type": CONTENT_TYPE, "User-Agent": "any"}
    request = AWSRequest("POST", f"https://{host}{path}", headers=headers, data=body)
    theirs = BotocoreCredentials(credentials.access_key, credentials.secret_key, credentials.token)
    SigV4Auth(theirs, "dynamodb", region).add_auth(request)
    return {name: value for name, value in request.headers.items() if name not in headers}


def as_dict(lines: str) -> dict[str, str]:
    assert lines.endswith("\r\n")
    return dict(line.split(": ", 1) for line in lines[:-2].split("\r\n"))


def random_request(randoms: random.Random) -> tuple[Credentials, str, str, str, str, bytes, float]:
    secrets = string.ascii_letters + string.digits + "+/="

    def text(alphabet: str, longest: int) -> str:
        return "".join(randoms.choices(alphabet, k=randoms.randint(1, longest)))

    token = randoms.choice([None, text(secrets, 1_500)])
    credentials = Credentials(text(string.ascii_uppercase, 20), text(secrets, 40), token)
    region = randoms.choice(["us-east-1", "eu-central-2", "us-gov-west-1", "cn-north-1", text(string.ascii_lowercase, 12)])
    host = randoms.choice(["localhost", "127.0.0.1", "[::1]", f"dynamodb.{region}.amazonaws.com", "a.example"])
    host += randoms.choice(["", f":{randoms.randint(1024, 65_535)}"])
    target = f"DynamoDB_20120810.{randoms.choice(['PutItem', 'GetItem', 'TransactWriteItems'])}"
    body = randoms.choice(
        [b"", text('aé\u2028😀\\"', 200).encode(), randoms.randbytes(randoms.randint(1, 5_000)), b"x" * 400_000]
    )
    now = randoms.choice([randoms.choice(MIDNIGHTS) + randoms.randint(-2, 2) / 2, randoms.uniform(0, 4e9)])
    return credentials, region, host, randoms.choice(PATHS), target, body, now


@pytest.mark.parametrize("seed", [20_261_122])
def test_thousands_of_requests_are_signed_as_botocore_signs_them(seed: int, botocore_clock: Callable[[float], None]) -> None:
    randoms = random.Random(seed)

    for _ in range(REQUESTS):
        credentials, region, host, path, target, body, now = random_request(randoms)
        botocore_clock(now)

        signed = Signer(region, host, path).headers(credentials, now, target, body)

        assert as_dict(signed) == by_botocore(credentials, region, host, path, target, body)


@pytest.mark.parametrize("seed", [20_261_122])
def test_one_signer_keeps_up_with_the_clock_the_target_the_body_and_the_credentials(
    seed: int,
    botocore_clock: Callable[[float], None],
) -> None:
    """What it keeps from the request before never leaks into the next."""
    randoms = random.Random(seed)
    signer = Signer("us-east-1", "localhost:8000")
    identities = [
        Credentials("A", "one"),
        Credentials("A", "two"),
        Credentials("B", "one"),
        Credentials("A", "one", "token"),
        Credentials("A", "one", "other"),
    ]
    now, identity = MIDNIGHTS[0] - 30.0, identities[0]

    for _ in range(1_000):
        now += randoms.choice([0, 0, 0.3, 1, 20_000])
        identity = randoms.choice([identity, identity, randoms.choice(identities)])
        request = "us-east-1", "localhost:8000", "/", randoms.choice(["T.PutItem", "T.GetItem"]), randoms.randbytes(3)
        botocore_clock(now)

        signed = signer.headers(identity, now, *request[3:])

        assert as_dict(signed) == by_botocore(identity, *request)


@pytest.mark.parametrize(
    "endpoint", ["https://dynamodb.eu-west-1.amazonaws.com", "http://127.0.0.1:8123", "https://h.example/a/../b%20c"]
)
@pytest.mark.parametrize("token", [None, "tok/+="])
def test_a_boto3_client_sends_the_same_signature(
    endpoint: str, token: str | None, botocore_clock: Callable[[float], None]
) -> None:
    """Which headers are signed is up to botocore's client, not to its signer."""
    sent = []

    def before_send(request: Any, **_: Any) -> Any:
        sent.append(request)
        return SimpleNamespace(status_code=200, headers={}, content=b"{}", raw=None)

    session = Session("AKID", "secret", token)
    client = session.client("dynamodb", region_name="eu-west-1", endpoint_url=endpoint, config=Config(parameter_validation=False))
    client.meta.events.register("before-send.dynamodb.*", before_send)
    botocore_clock(MIDNIGHTS[0])
    host, _, path = endpoint.partition("://")[2].partition("/")

    client.get_item(TableName="t", Key={"id": {"S": "é"}})
    client.close()
    theirs = {name: value.decode() if isinstance(value, bytes) else value for name, value in sent[0].headers.items()}
    signer = Signer("eu-west-1", host, f"/{path}")
    ours = as_dict(signer.headers(Credentials("AKID", "secret", token), MIDNIGHTS[0], theirs["X-Amz-Target"], sent[0].body))

    assert theirs["Content-Type"] == CONTENT_TYPE
    assert {name: theirs.get(name) for name in ("X-Amz-Date", "X-Amz-Security-Token", "Authorization")} == {
        "X-Amz-Security-Token": None,
        **ours,
    }


@pytest.mark.parametrize("path", PATHS)
def test_paths_are_normalised_and_quoted_as_by_botocore(path: str) -> None:
    assert canonical_path(path) == SigV4Auth(None, "dynamodb", "us-east-1")._normalize_url_path(path)


@pytest.mark.parametrize(
    "credentials",
    [
        Credentials("AKID\n", "secret"),
        Credentials("AKID", "secret", "token\r\nX-Evil: 1"),
        Credentials("AKÏD", "secret"),
    ],
)
def test_credentials_that_no_header_can_hold_are_refused_and_not_shown(credentials: Credentials) -> None:
    signer = Signer("us-east-1", "localhost")

    with pytest.raises(ValueError, match="credentials") as refused:
        signer.headers(credentials, 0, "T.PutItem", b"{}")

    assert not any(part in str(refused.value) for part in ("AKID", "AKÏD", "Evil", "secret"))


def test_no_repr_shows_credentials_or_a_key() -> None:
    credentials = Credentials("AKID", "secret", "token")
    signer = Signer("us-east-1", "localhost")
    signer.headers(credentials, 0, "T.PutItem", b"{}")

    shown = f"{credentials} {credentials!r} {signer} {signer._moment!r}"

    assert not any(part in shown for part in ("AKID", "secret", "token", repr(signer._key[2])))
