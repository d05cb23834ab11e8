"""Credentials from wherever boto3 finds them, in a fresh process that has not imported boto3, for either client.

A server of the test's own stands for DynamoDB and for the services that give credentials.  Each gives an access key that names
its source, and DynamoDB's part remembers the access key of each request.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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
