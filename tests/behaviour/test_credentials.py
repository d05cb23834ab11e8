"""Credentials from wherever boto3 finds them, for either client; and a source of credentials that fails.

A server of the test's own stands for DynamoDB and for the services that give credentials.  Each gives an access key that names
its source, and DynamoDB's part remembers the access key of each request.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from functools import cache
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import inf
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import botocore.session
import pytest
from botocore import exceptions as sdk
from botocore.credentials import CredentialResolver, RefreshableCredentials
from botocore.exceptions import ClientError

from idempotency import (
    DynamoDBPersistenceLayer,
    Event,
    IdempotencyConfig,
    IdempotencyPersistenceLayerError,
    make_idempotent,
)
from idempotency.events import Throttled
from persistence._retries import error_code
from persistence._sigv4 import Credentials
from persistence.datarecord import DataRecord
from persistence.lean import LeanClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from doubles import FakeClock

IN_A_YEAR = "2099-01-01T00:00:00Z"

#: As an AWS SDK that begins a session writes it below ~/.aws/sso/cache, under a digest of the session's name.
SSO_TOKEN = {"startUrl": "https://sso.example.com", "region": "eu-west-1", "accessToken": "token", "expiresAt": IN_A_YEAR}

PROFILES = """
[profile web]
role_arn = arn:aws:iam::000000000000:role/web
web_identity_token_file = {home}/token

[profile base]
aws_access_key_id = BASE
aws_secret_access_key = secret

[profile assumed]
role_arn = arn:aws:iam::000000000000:role/assumed
source_profile = base

[profile chained]
role_arn = arn:aws:iam::000000000000:role/chained
source_profile = assumed

[profile process]
credential_process = {python} {home}/process.py

[profile over-process]
role_arn = arn:aws:iam::000000000000:role/over-process
source_profile = process

[profile over-container]
role_arn = arn:aws:iam::000000000000:role/over-container
credential_source = EcsContainer

[profile legacy-sso]
sso_start_url = https://sso.example.com
sso_region = eu-west-1
sso_account_id = 000000000000
sso_role_name = legacy

[profile sso]
sso_session = mine
sso_account_id = 000000000000
sso_role_name = sso

[sso-session mine]
sso_region = eu-west-1
sso_start_url = https://sso.example.com

[profile over-sso]
role_arn = arn:aws:iam::000000000000:role/over-sso
source_profile = sso
"""

#: Calls a function twice, with a store that makes its client by itself.
PROGRAM = """
import sys
from idempotency import DynamoDBPersistenceLayer, make_idempotent
store = DynamoDBPersistenceLayer("table", client={client!r})
work = make_idempotent(lambda event: event, persistence_store=store)
assert work(1) == 1
assert work(2) == 2
assert "boto3" not in sys.modules
"""


class Services(ThreadingHTTPServer):
    """DynamoDB, STS, IAM Identity Center and the container's endpoint of credentials, on one port."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.access_keys: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    server: Services
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "X-Amz-Target" in self.headers:
            self.server.access_keys.append(self._access_key())
            self._answer("application/x-amz-json-1.0", "{}")
            return
        asked = {name: values[0] for name, values in parse_qs(body.decode()).items()}
        signed_by = "" if asked["Action"] == "AssumeRoleWithWebIdentity" else f"-BY-{self._access_key()}"
        key = asked["RoleArn"].rpartition("/")[2].upper() + signed_by
        self._answer("text/xml", _assumed(asked["Action"], key))

    def do_GET(self) -> None:
        key = "CONTAINER"
        if self.path.startswith("/federation/credentials"):
            assert self.headers["x-amz-sso_bearer_token"] == "token"
            [role] = re.findall("role_name=([^&]+)", self.path)
            given = {"accessKeyId": role.upper(), "secretAccessKey": "s", "sessionToken": "t", "expiration": 4_070_908_800_000}
            self._answer("application/json", json.dumps({"roleCredentials": given}))
            return
        given = {"AccessKeyId": key, "SecretAccessKey": "s", "Token": "t", "Expiration": IN_A_YEAR}
        self._answer("application/json", json.dumps(given))

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _access_key(self) -> str:
        return self.headers["Authorization"].partition("Credential=")[2].partition("/")[0]

    def _answer(self, kind: str, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


def _assumed(action: str, access_key: str) -> str:
    credentials = (
        f"<Credentials><AccessKeyId>{access_key}</AccessKeyId><SecretAccessKey>s</SecretAccessKey>"
        f"<SessionToken>t</SessionToken><Expiration>{IN_A_YEAR}</Expiration></Credentials>"
    )
    user = "<AssumedRoleUser><Arn>arn:aws:sts::000000000000:assumed-role/a/b</Arn></AssumedRoleUser>"
    return f"<{action}Response><{action}Result>{credentials}{user}</{action}Result></{action}Response>"


@pytest.fixture
def services() -> Iterator[Services]:
    with Services() as running:
        thread = Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def environment(services: Services, tmp_path: Path) -> dict[str, str]:
    """That of a process which finds its credentials in the files of a home of its own."""
    aws, cache = tmp_path / ".aws", tmp_path / ".aws" / "sso" / "cache"
    cache.mkdir(parents=True)
    (aws / "config").write_text(PROFILES.format(home=tmp_path, python=sys.executable))
    (tmp_path / "token").write_text("a web identity")
    given = {"Version": 1, "AccessKeyId": "PROCESS", "SecretAccessKey": "s", "SessionToken": "t", "Expiration": IN_A_YEAR}
    (tmp_path / "process.py").write_text(f"print({json.dumps(given)!r})")
    for name in ("mine", SSO_TOKEN["startUrl"]):
        (cache / f"{sha1(name.encode()).hexdigest()}.json").write_text(json.dumps(SSO_TOKEN))
    return {
        "HOME": str(tmp_path),
        "PATH": "/usr/bin:/bin",
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": services.url,
        "PYTHONPATH": ":".join(path for path in sys.path if path),
    }


@pytest.mark.parametrize("client", ["boto3", "lean"])
@pytest.mark.parametrize(
    ("variables", "access_key"),
    [
        ({"AWS_ROLE_ARN": "arn:aws:iam::000000000000:role/pod", "AWS_WEB_IDENTITY_TOKEN_FILE": "{home}/token"}, "POD"),
        ({"AWS_PROFILE": "web"}, "WEB"),
        ({"AWS_PROFILE": "base"}, "BASE"),
        ({"AWS_PROFILE": "assumed"}, "ASSUMED-BY-BASE"),
        ({"AWS_PROFILE": "chained"}, "CHAINED-BY-ASSUMED-BY-BASE"),
        ({"AWS_PROFILE": "process"}, "PROCESS"),
        ({"AWS_PROFILE": "over-process"}, "OVER-PROCESS-BY-PROCESS"),
        (
            {"AWS_PROFILE": "over-container", "AWS_CONTAINER_CREDENTIALS_FULL_URI": "{url}/container"},
            "OVER-CONTAINER-BY-CONTAINER",
        ),
        ({"AWS_PROFILE": "legacy-sso"}, "LEGACY"),
        ({"AWS_PROFILE": "sso"}, "SSO"),
        ({"AWS_PROFILE": "over-sso"}, "OVER-SSO-BY-SSO"),
        ({"AWS_CONTAINER_CREDENTIALS_FULL_URI": "{url}/container"}, "CONTAINER"),
        ({"AWS_ACCESS_KEY_ID": "ENV", "AWS_SECRET_ACCESS_KEY": "s"}, "ENV"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_credentials_come_from_every_source_of_botocore(
    variables: dict[str, str],
    access_key: str,
    client: str,
    services: Services,
    environment: dict[str, str],
) -> None:
    """Those that ask another service need clients of the same botocore session as the store's own."""
    for name, value in variables.items():
        environment[name] = value.format(home=environment["HOME"], url=services.url)

    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM.format(client=client)], capture_output=True, text=True, check=False, env=environment
    )

    assert done.returncode == 0, done.stderr
    assert services.access_keys == [access_key] * 4


def test_the_session_of_the_stores_clients_knows_every_service(environment: dict[str, str]) -> None:
    """Only what DynamoDB's own model is looked up by is known beforehand; whoever asks for the list of services gets it."""
    program = (
        "from persistence import dynamodb\n"
        "made = dynamodb.DynamoDBPersistenceLayer('table').client\n"
        "session = dynamodb._botocore_session()\n"
        "assert {'sts', 'sso', 'sso-oidc', 's3', 'dynamodb'} <= set(session.get_available_services())\n"
        "assert session.get_service_model('sts').service_name == 'sts'\n"
        "try:\n    session.create_client('nothing')\nexcept Exception as error:\n    assert 'nothing' in str(error)\n"
        "else:\n    raise AssertionError\n"
    )

    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=False, env=environment)

    assert done.returncode == 0, done.stderr


# A source that fails while calls are under way


class Source:
    """Gives credentials that are to be refreshed at each request, and fails as often as it is told."""

    def __init__(self, failure: Callable[[], object]) -> None:
        self.failure = failure
        self.failures_left = 0.0
        self.failed = 0

    def refresh(self) -> dict[str, str]:
        if self.failures_left > 0:
            self.failures_left -= 1
            self.failed += 1
            self.failure()
        # Within ten minutes of the end, botocore does not go on without a refresh, although these are valid.
        expiry = (datetime.now(UTC) + timedelta(minutes=5)).isoformat()  # noqa: TID251 - botocore asks this clock
        return {"access_key": "A", "secret_key": "s", "token": "t", "expiry_time": expiry}


def raising(error: Exception) -> Callable[[], object]:
    def fail() -> None:
        raise error

    return fail


def sts_error(code: str, status: int = 400) -> ClientError:
    metadata: Any = {"HTTPStatusCode": status, "RetryAttempts": 4}
    return ClientError({"Error": {"Code": code, "Message": "of STS"}, "ResponseMetadata": metadata}, "AssumeRole")


#: Failures of a source, by whether it may do better at once.
PASSING = [
    sdk.CredentialRetrievalError(provider="custom-process", error_msg="exit status 1"),
    sdk.MetadataRetrievalError(error_msg="no answer"),
    sdk.TokenRetrievalError(provider="sso", error_msg="no answer"),
    sdk.EndpointConnectionError(endpoint_url="https://sts.amazonaws.com"),
    sdk.ReadTimeoutError(endpoint_url="https://sts.amazonaws.com"),
    sts_error("Throttling"),
    sts_error("InternalFailure", 500),
    sts_error("IDPCommunicationError"),
]
LASTING = [
    sts_error("AccessDenied", 403),
    sts_error("ValidationException"),
    sdk.PartialCredentialsError(provider="env", cred_var="AWS_SECRET_ACCESS_KEY"),
    sdk.UnauthorizedSSOTokenError(),
    FileNotFoundError("token"),
    ValueError("not JSON"),
    RuntimeError("Credentials were refreshed, but the refreshed credentials are still expired."),
]


def name_of(value: object) -> str:
    return f"{type(value).__name__} {error_code(value) if isinstance(value, Exception) else ''}".strip()


@pytest.fixture(params=["boto3", "lean"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@cache
def botocore_session() -> Any:
    """One for all tests, because it remembers the service's model, which takes long to load."""
    return botocore.session.Session()


def store_with(source: Source, kind: str, services: Services, clock: FakeClock) -> DynamoDBPersistenceLayer:
    """A store whose client asks the source for credentials, through botocore's own refreshing ones."""
    found = RefreshableCredentials.create_from_metadata(source.refresh(), source.refresh, "test")
    client: Any
    if kind == "lean":

        def credentials() -> Credentials:
            frozen = found.get_frozen_credentials()
            return Credentials(frozen.access_key, frozen.secret_key, frozen.token)

        client = LeanClient("eu-west-1", endpoint_url=services.url, credentials=credentials)
    else:
        session = botocore_session()
        session._credentials = found
        client = session.create_client("dynamodb", region_name="eu-west-1", endpoint_url=services.url)
    store = DynamoDBPersistenceLayer("table", boto3_client=client)
    store.clock_ms, store.sleep_ms = clock, clock.sleep_ms
    return store


def call(store: DynamoDBPersistenceLayer, source: Source, *, at: str, times: float) -> list[str]:
    """Call a function whose source of credentials fails so often at the claim or at the completion.  Whether it ran."""
    runs: list[str] = []

    def work(event: str) -> str:
        runs.append(event)
        if at == "completion":
            source.failures_left = times
        return event

    if at == "claim":
        source.failures_left = times
    assert make_idempotent(work, persistence_store=store)("event") == "event"
    return runs


@pytest.mark.parametrize("failure", [*PASSING, *LASTING], ids=name_of)
def test_a_completion_is_tried_again_where_the_source_of_the_credentials_fails(
    failure: Exception, kind: str, services: Services, clock: FakeClock
) -> None:
    """The function has run: without the record, a retry would run it again."""
    source = Source(raising(failure))
    store = store_with(source, kind, services, clock)

    assert call(store, source, at="completion", times=3) == ["event"]

    assert source.failed == 3
    assert len(clock.slept_ms) == 3
    assert len(services.access_keys) == 2


@pytest.mark.parametrize("failure", PASSING, ids=name_of)
def test_a_claim_is_tried_again_where_the_source_may_do_better_at_once(
    failure: Exception, kind: str, services: Services, clock: FakeClock
) -> None:
    source = Source(raising(failure))
    store = store_with(source, kind, services, clock)

    assert call(store, source, at="claim", times=1) == ["event"]

    assert source.failed == 1


@pytest.mark.parametrize("failure", LASTING, ids=name_of)
def test_a_claim_fails_at_once_where_only_a_person_can_help(
    failure: Exception, kind: str, services: Services, clock: FakeClock
) -> None:
    """And nobody waits: the function was not run."""
    source = Source(raising(failure))
    store = store_with(source, kind, services, clock)

    with pytest.raises(IdempotencyPersistenceLayerError):
        call(store, source, at="claim", times=1)

    assert clock.slept_ms == []
    assert services.access_keys == []


def test_a_source_that_fails_for_good_is_given_up_in_time(kind: str, services: Services, clock: FakeClock) -> None:
    source = Source(raising(PASSING[0]))
    store = store_with(source, kind, services, clock)

    with pytest.raises(IdempotencyPersistenceLayerError):
        call(store, source, at="claim", times=inf)

    assert sum(clock.slept_ms) == pytest.approx(10_000, abs=100)


def test_a_failure_of_another_service_leaves_no_doubt_about_the_record(kind: str, services: Services, clock: FakeClock) -> None:
    """Its answer was unknown, and nothing was sent to DynamoDB: nobody is throttled there, and no read need settle anything."""
    source = Source(raising(sts_error("InternalFailure", 500)))
    store = store_with(source, kind, services, clock)
    source.failures_left = inf
    record = DataRecord("k", "COMPLETED", 1_900_000_000, owner_token="a", generation=1, response_data="1")

    with pytest.raises(IdempotencyPersistenceLayerError):
        store.complete(record)

    assert services.access_keys == []


def test_a_throttle_of_another_service_is_no_throttle_of_the_table(kind: str, services: Services, clock: FakeClock) -> None:
    source = Source(raising(sts_error("Throttling")))
    store = store_with(source, kind, services, clock)
    source.failures_left = 1
    seen: list[Event] = []

    make_idempotent(lambda event: event, persistence_store=store, config=IdempotencyConfig(observers=[seen.append]))(1)

    assert source.failed == 1
    assert not any(isinstance(event, Throttled) for event in seen)


def test_where_no_credentials_are_configured_a_claim_fails_at_once_and_a_completion_is_tried_on(
    services: Services, clock: FakeClock
) -> None:
    """They may be found in time: the function has run."""
    session = botocore_session()
    session._credentials = None
    session.register_component("credential_provider", CredentialResolver([]))
    client: Any = session.create_client("dynamodb", region_name="eu-west-1", endpoint_url=services.url)
    store = DynamoDBPersistenceLayer("table", boto3_client=client)
    store.clock_ms, store.sleep_ms = clock, clock.sleep_ms
    record = DataRecord("k", "INPROGRESS", 1_900_000_000, owner_token="a", generation=1)

    with pytest.raises(IdempotencyPersistenceLayerError, match="Unable to locate credentials"):
        store.claim(record)
    assert clock.slept_ms == []

    with pytest.raises(IdempotencyPersistenceLayerError, match="Unable to locate credentials"):
        store.complete(record.replace(status="COMPLETED", response_data="1", deadline_ms=clock() + 3_000))
    assert sum(clock.slept_ms) == pytest.approx(2_900, abs=20)
