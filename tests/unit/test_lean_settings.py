"""The lean client's Region, endpoint, credentials and authorities are those that boto3 would use, or it is not made."""

from __future__ import annotations

import hashlib
import json
import random
import ssl
import subprocess
import sys
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
import botocore
import botocore.auth
import pytest
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.exceptions import BotoCoreError
from botocore.session import get_session
from cryptography import x509
from engines.tls import certificates

from persistence import _lean_settings as settings
from persistence._lean_settings import Endpoint, credentials_source, parse, resolve, tls_context
from persistence._sigv4 import Credentials
from persistence.exceptions import IdempotencyPersistenceConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(settings.__file__).parents[1]
LAMBDA = {
    "AWS_REGION": "eu-west-1",
    "AWS_DEFAULT_REGION": "eu-west-1",
    "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "the-secret",
    "AWS_SESSION_TOKEN": "the-token",
}
CUSTOM = "http://127.0.0.1:8000"
#: Older ones know fewer partitions.
botocore_of_today = pytest.mark.skipif(
    tuple(map(int, botocore.__version__.split(".")[:2])) < (1, 44), reason="the settings follow botocore 1.44"
)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The variables of a Lambda function, and nothing else that counts; no session of boto3's, nothing remembered."""
    import os

    for name in list(os.environ):
        if name.startswith(("AWS_", "SSL_CERT")) or name == "REQUESTS_CA_BUNDLE" or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, value in LAMBDA.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    settings._own.clear()
    settings._contexts.clear()
    yield
    settings._own.clear()
    settings._contexts.clear()


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Writes a config file."""

    def write(text: str) -> Path:
        file = tmp_path / "config"
        file.write_text(text)
        monkeypatch.setenv("AWS_CONFIG_FILE", str(file))
        return file

    return write


def url_of(region_name: str | None = None, endpoint_url: str | None = None) -> str:
    _, endpoint = resolve(region_name, endpoint_url)
    return f"{'https' if endpoint.is_tls else 'http'}://{endpoint.host_header}{endpoint.path}"


def refused(region_name: str | None = None, endpoint_url: str | None = None, *, match: str = 'client="boto3"') -> str:
    with pytest.raises(IdempotencyPersistenceConfigError, match=match) as raised:
        resolve(region_name, endpoint_url)
    return str(raised.value)


# What boto3 does


class NoBody:
    def stream(self) -> Iterator[bytes]:
        yield b"{}"


#: Its models are read once.
LOADER = get_session().get_component("data_loader")


def session_of_botocore() -> Any:
    session = get_session()
    session.register_component("data_loader", LOADER)
    return session


def sent_by(session: Any, region_name: str | None, endpoint_url: str | None = None) -> tuple[str, str, str]:
    """The signing Region, Host header and URL of a request of botocore's, which is not sent."""
    sent: list[Any] = []

    def answer(request: Any, **_: Any) -> AWSResponse:
        sent.append(request)
        return AWSResponse(request.url, 200, {}, NoBody())

    quick = Config(parameter_validation=False, proxies={})
    client = session.create_client("dynamodb", region_name=region_name, endpoint_url=endpoint_url, config=quick)
    try:
        client.meta.events.register("before-send.dynamodb.GetItem", answer)
        client.get_item(TableName="t", Key={})
    finally:
        client.close()
    scope = sent[0].headers["Authorization"].decode().split("Credential=")[1].split("/")
    return scope[2], botocore.auth._host_from_url(sent[0].url), sent[0].url


def same(session: Any, region_name: str | None, endpoint_url: str | None = None) -> str:
    """Compare both: "" if they agree, or the difference."""
    theirs: tuple[str, str, str] | None = None
    with suppress(BotoCoreError, ValueError):
        theirs = sent_by(session, region_name, endpoint_url)
    ours: tuple[str, Any] | None = None
    with suppress(IdempotencyPersistenceConfigError):
        ours = resolve(region_name, endpoint_url)
    if theirs is None or ours is None:
        return "" if theirs is ours else f"{region_name} {endpoint_url}: {ours} instead of {theirs}"
    region, endpoint = ours
    split = urlsplit(theirs[2])
    expected = (theirs[0], split.scheme == "https", split.hostname, theirs[1], split.path)
    actual = (region, endpoint.is_tls, endpoint.host, endpoint.host_header, endpoint.path)
    return "" if actual == expected else f"{region_name} {endpoint_url}: {actual} instead of {expected}"


def known_regions() -> list[str]:
    session = get_session()
    found = [
        region
        for partition in session.get_available_partitions()
        for region in session.get_available_regions("dynamodb", partition, allow_non_regional=True)
    ]
    return sorted({*found, *settings.GLOBAL, "aws-global"})


MADE_UP = [
    "us-middle-7", "mx-south-12", "cn-south-9", "eusc-de-west-2", "eusc-fr-west-1", "us-gov-north-1", "us-iso-north-3",
    "us-isob-south-1", "us-isof-west-2", "eu-isoe-east-9", "us-iso-1", "us-gov-1", "cn-north", "cn--1", "nowhere", "xx-east-1",
    "US-EAST-1", "us-east-1a", "us-east-x", "fips-us-east-1", "us-gov-east-1-fips", "fips-fips", "a-fips", "fips-1", "fips--x",
    "cn-north-1-1", "us-iso-b-east-1", "us-gov-north-north-1", "a" * 63,
    "cn-north-x", "us-gov-north-x",
]  # fmt: skip
INVALID = [
    "", "1", "-us", "us-", "us_east_1", "us east", "us-east-1\n", "us-east-1\t", "\u00fcs-east-1", "us-east-1\u0660", "a" * 64,
    "us-east-1.evil.example", "evil.example/", "evil.example#", "x@evil.example", "us-east-1:80", "..", "%2e",
]  # fmt: skip


@botocore_of_today
@pytest.mark.parametrize("fips", ["", "true"])
@pytest.mark.parametrize("dual_stack", ["", "True"])
def test_each_region_has_the_endpoint_and_the_signature_of_boto3(
    monkeypatch: pytest.MonkeyPatch, fips: str, dual_stack: str
) -> None:
    monkeypatch.setenv("AWS_USE_FIPS_ENDPOINT", fips)
    monkeypatch.setenv("AWS_USE_DUALSTACK_ENDPOINT", dual_stack)
    monkeypatch.setenv("AWS_ACCOUNT_ID_ENDPOINT_MODE", "disabled")
    session = session_of_botocore()

    differences = [same(session, region) for region in [*known_regions(), *MADE_UP]]

    assert not [each for each in differences if each]


@botocore_of_today
@pytest.mark.parametrize("region", INVALID)
def test_what_is_no_region_is_refused_as_boto3_refuses_it(region: str) -> None:
    assert same(session_of_botocore(), region) == ""
    refused(region)


ORDER = [
    {},
    {"AWS_DEFAULT_REGION": "cn-north-1"},
    {"AWS_DEFAULT_REGION": "us-gov-west-1", "AWS_USE_FIPS_ENDPOINT": "TRUE"},
    {"AWS_USE_FIPS_ENDPOINT": "1"},
    {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"},
    {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ENDPOINT_URL_DYNAMODB": "https://LocalHost:2/A/b"},
    {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ENDPOINT_URL_DYNAMODB": ""},
    {"AWS_ENDPOINT_URL": ""},
    {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"},
    {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_USE_FIPS_ENDPOINT": "true"},
    {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_USE_DUALSTACK_ENDPOINT": "true"},
    {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_DEFAULT_REGION": "local"},
    {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_DEFAULT_REGION": "eu-isoe-west-1", "AWS_USE_DUALSTACK_ENDPOINT": "true"},
    {"AWS_ENDPOINT_URL": "https://dynamodb.eu-west-1.api.aws"},
    {"AWS_ENDPOINT_URL": "https://search-dynamodb.eu-west-1.api.aws/"},
    {"AWS_ENDPOINT_URL": "https://dynamodb.eu-west-1.api.aws:443"},
    {"AWS_ENDPOINT_URL": "https://dynamodb.eu-west-2.api.aws"},
    {"AWS_ENDPOINT_URL": "https://dynamodb.cn-north-1.api.amazonwebservices.com.cn", "AWS_DEFAULT_REGION": "cn-north-1"},
    {"AWS_ENDPOINT_URL": "ftp//nothing"},
    {"AWS_ENDPOINT_DISCOVERY_ENABLED": "False"},
    {"AWS_ENDPOINT_DISCOVERY_ENABLED": "perhaps"},
    {"AWS_ACCOUNT_ID_ENDPOINT_MODE": "Disabled"},
    {"AWS_ACCOUNT_ID_ENDPOINT_MODE": "perhaps"},
    {"AWS_CA_BUNDLE": ""},
    {"AWS_PROFILE": "absent"},
    {"AWS_PROFILE": "default"},
    {"AWS_DEFAULT_PROFILE": ""},
]
GIVEN = [(None, None), ("us-west-2", None), (None, "http://127.0.0.1:9"), ("local", None), ("eu-west-1-fips", "http://[::1]:9/")]


@botocore_of_today
@pytest.mark.parametrize("variables", ORDER, ids=str)
def test_arguments_and_variables_count_in_the_order_of_boto3(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    monkeypatch.delenv("AWS_REGION")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    differences = [same(session_of_botocore(), *given) for given in GIVEN]

    assert not [each for each in differences if each]


CONFIGS = [
    "[default]\nregion = eu-central-1",
    "[default]\nregion = eu-central-1\nendpoint_url = http://127.0.0.1:3",
    "[default]\nregion = eu-central-1\nendpoint_url = http://127.0.0.1:3\nignore_configured_endpoint_urls = true",
    "[default]\nservices = mine\n[services mine]\ndynamodb =\n  endpoint_url = http://127.0.0.1:4",
    "[default]\nservices = mine\nendpoint_url = http://127.0.0.1:3\n[services mine]\ns3 =\n  endpoint_url = http://127.0.0.1:4",
    "[default]\nservices = absent",
    "[default]\nservices = mine\nendpoint_url = http://127.0.0.1:3\n[services mine]\ndynamodb =\n  region = x",
    "[default]\nuse_fips_endpoint = true",
    "[default]\nuse_dualstack_endpoint = true\nregion = cn-north-1",
    "[default]\n[profile other]\nregion = eu-north-1\nuse_fips_endpoint = true",
    "[default]\nca_bundle =",
    "[default",
    "",
]


@botocore_of_today
@pytest.mark.parametrize("text", CONFIGS)
@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"AWS_DEFAULT_REGION": "us-west-1"},
        {"AWS_PROFILE": "other"},
        {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"},
        {"AWS_USE_FIPS_ENDPOINT": "false"},
    ],
    ids=str,
)
def test_the_config_file_counts_as_for_boto3(
    monkeypatch: pytest.MonkeyPatch, config: Any, text: str, variables: dict[str, str]
) -> None:
    config(text)
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    differences = [same(session_of_botocore(), *given) for given in GIVEN]

    assert not [each for each in differences if each]


def test_a_services_section_that_is_none_is_refused(config: Any) -> None:
    config("[default]\nservices = mine\n[services mine]\ndynamodb = http://127.0.0.1:4")

    refused(match="section of services")


def test_files_at_home_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    (tmp_path / "home" / ".aws").mkdir(parents=True)
    (tmp_path / "home" / ".aws" / "credentials").write_text("[default]\nregion = eu-south-1\n")

    assert resolve(None, None)[0] == "eu-south-1"


def test_a_credentials_file_elsewhere_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "$HOME/../mine")
    (tmp_path / "home").mkdir()
    (tmp_path / "mine").write_text("[default]\nregion = eu-south-2\n")

    assert resolve(None, None)[0] == "eu-south-2"


def test_the_region_of_lambda_counts_where_boto3_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    assert resolve(None, None)[0] == "eu-west-1"
    assert resolve("us-east-1", None)[0] == "us-east-1"

    monkeypatch.delenv("AWS_DEFAULT_REGION")
    assert resolve(None, None)[0] == "eu-north-1"

    monkeypatch.setenv("AWS_REGION", "")
    refused(match="no Region")


def test_an_empty_region_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "")

    refused(match="Region")
    refused(None, CUSTOM, match="Region")  # which boto3 takes, and signs for no Region


def test_a_region_of_which_nothing_is_left_is_refused() -> None:
    refused("fips--fips", CUSTOM, match="Region")


def test_boto3s_default_session_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    session = boto3.Session(region_name="sa-east-1", aws_access_key_id="AKIDOTHER", aws_secret_access_key="other")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", session)

    assert resolve(None, None)[0] == "sa-east-1"
    assert credentials_source()() == Credentials("AKIDOTHER", "other", None)


def test_a_sessions_own_client_configuration_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    session = get_session()
    session.set_default_client_config(Config(use_fips_endpoint=True))
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", boto3.Session(botocore_session=session))

    refused(match="client configuration")


def test_endpoints_of_ones_own_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_DATA_PATH", str(tmp_path))
    assert resolve(None, None)[0] == "eu-west-1"

    settings._own.clear()
    (tmp_path / "endpoints.json").write_text("{}")
    refused(match="AWS_DATA_PATH")


@pytest.mark.parametrize(
    ("name", "value"), [("AWS_ACCOUNT_ID_ENDPOINT_MODE", "Required"), ("AWS_ENDPOINT_DISCOVERY_ENABLED", "true")]
)
def test_endpoints_by_account_and_discovered_ones_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)

    refused(match=name)


def test_a_given_endpoint_needs_no_discovery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_DISCOVERY_ENABLED", "true")

    assert url_of(None, CUSTOM) == f"{CUSTOM}/"


def test_without_botocore_what_the_environment_does_not_say_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "default")
    monkeypatch.setitem(sys.modules, "botocore.session", None)

    refused(match="needs botocore")


# URLs

PLAIN = [
    ("http://localhost", (False, "localhost", 80, "localhost", "/")),
    ("https://localhost/", (True, "localhost", 443, "localhost", "/")),
    ("HTTPS://Example.COM:443/a/B-._~", (True, "example.com", 443, "example.com", "/a/B-._~")),
    ("http://example.com:443", (False, "example.com", 443, "example.com:443", "/")),
    ("http://127.0.0.1:08000/", (False, "127.0.0.1", 8000, "127.0.0.1:8000", "/")),
    ("http://[::1]:8000", (False, "::1", 8000, "[::1]:8000", "/")),
    ("https://[FE80::A]", (True, "fe80::a", 443, "[fe80::a]", "/")),
    ("http://localhost:", (False, "localhost", 80, "localhost", "/")),
]
BAD = [
    "", "localhost", "localhost:8000", "//localhost", "http:localhost", "http:/localhost", "http://", "http:///x", "ftp://localhost",
    "http://user@localhost", "http://user:word@localhost", "http://localhost?q=1", "http://localhost/?q=1", "http://localhost/#f",
    "http://localhost#f", "http://local host", "http://localhost\r\nX: y", "http://localhost/\r\nX: y", " http://localhost",
    "http://localhost/a b", "http://localhost/%2e", "http://localhost/a/../b", "http://localhost/./b", "http://localhost//b",
    "http://localhost:0", "http://localhost:65536", "http://localhost:-1", "http://localhost:+80", "http://localhost: 80",
    "http://localhost:8\u0660", "http://localhost:http", "http://localhost:1:2", "http://::1", "http://[::1", "http://::1]",
    "http://[::1]x", "http://[::1]x:80", "http://[::g]", "http://[fe80::1%25eth0]", "http://[::1\0]", "http://[\u0661::1]", "http://[]",
    "http://[localhost]", "http://a_b", "http://-a", "http://a-", "http://a..b", "http://.a", "http://a.", "http://\u212aelvin",
    f"http://{'a' * 64}", f"http://{'a.' * 127}aa", "http://a\\b", "http://localhost\\@evil.example", "http://*", "http://%6c",
]  # fmt: skip


@pytest.mark.parametrize(("url", "endpoint"), PLAIN)
def test_an_endpoint_has_host_port_and_path(url: str, endpoint: tuple[bool, str, int, str, str]) -> None:
    assert parse(url) == Endpoint(*endpoint)


@pytest.mark.parametrize("url", BAD)
def test_what_is_no_plain_url_is_refused_and_not_repeated(url: str) -> None:
    message = refused(None, url, match="URL")

    assert url == "" or url not in message


PARTS = [
    ["http", "https", "HTTP", "ftp", ""],
    ["://", "://", "://", ":/", ":"],
    ["", "", "", "me@", "me:it@"],
    ["localhost", "A.Example", "127.0.0.1", "[::1]", "[FE80:0::1]", "::1", "[x]", "a_b", "a.", "-a", "", "a\tb", "[::1%1]"],
    ["", "", ":", ":80", ":443", ":8000", ":00443", ":99999", ":x", ":\u0662", ":-1"],
    ["", "", "/", "/a/b", "/a/", "//a", "/.", "/a/../b", "/%41", "/ä", "\\", "/~"],
    ["", "", "", "", "?", "?q", "#f", " ", "\n"],
]  # fmt: skip


def test_a_url_that_is_taken_means_what_it_means_to_boto3() -> None:
    seed = 20_261_122
    print(f"seed {seed}")  # noqa: T201 - pytest shows it if the test fails
    draw = random.Random(seed)
    taken = 0

    for _ in range(20_000):
        url = "".join(map(draw.choice, PARTS))
        try:
            endpoint = parse(url)
        except IdempotencyPersistenceConfigError:
            continue
        split = urlsplit(url)
        taken += 1
        assert endpoint.is_tls == (split.scheme == "https")
        assert endpoint.host == split.hostname
        assert endpoint.port == (split.port or {"http": 80, "https": 443}[split.scheme])
        assert endpoint.host_header == botocore.auth._host_from_url(url)
        assert endpoint.path == (split.path or "/")
        assert (split.username, split.query, split.fragment) == (None, "", "")

    assert taken > 200


def test_a_plain_url_is_never_refused() -> None:
    hosts, ports, paths = (
        ["localhost", "a-1.B.example", "10.0.0.1", "[::1]", "[2001:DB8::2]"],
        ["", ":", ":1", ":65535"],
        ["", "/", "/x/"],
    )

    for scheme, host, port, path in product(["http", "https"], hosts, ports, paths):
        url = f"{scheme}://{host}{port}{path}"
        assert parse(url).host == urlsplit(url).hostname


# Proxies


@pytest.mark.parametrize(
    ("variables", "url", "is_refused"),
    [
        ({"HTTPS_PROXY": "http://proxy:1"}, None, True),
        ({"https_proxy": "http://proxy:1"}, None, True),
        ({"HTTP_PROXY": "http://proxy:1", "ALL_PROXY": "http://proxy:1", "all_proxy": "http://proxy:1"}, None, False),
        ({"HTTP_PROXY": "http://proxy:1"}, "http://example.com", True),
        ({"Http_Proxy": "http://proxy:1"}, "http://example.com", True),
        ({"HTTP_PROXY": "http://proxy:1", "http_proxy": ""}, "http://example.com", False),
        ({"HTTP_PROXY": "http://proxy:1", "REQUEST_METHOD": "GET"}, "http://example.com", False),
        ({"HTTPS_PROXY": ""}, None, False),
        ({"HTTPS_PROXY": "http://proxy:1", "NO_PROXY": ".amazonaws.com"}, None, False),
        ({"HTTPS_PROXY": "http://proxy:1", "no_proxy": "localhost, eu-west-1.amazonaws.com"}, None, False),
        ({"HTTPS_PROXY": "http://proxy:1", "NO_PROXY": "*"}, None, False),
        ({"HTTPS_PROXY": "http://proxy:1", "NO_PROXY": "eu-west-2.amazonaws.com"}, None, True),
        ({"HTTP_PROXY": "http://proxy:1", "NO_PROXY": "example.com:8000"}, "http://Example.com:8000", False),
        ({"HTTP_PROXY": "http://proxy:1", "NO_PROXY": "example.com:8001"}, "http://Example.com:8000", True),
    ],
)
def test_a_proxy_that_boto3_would_use_is_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], url: str | None, is_refused: bool
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    target = url or "https://dynamodb.eu-west-1.amazonaws.com"
    scheme = target.partition(":")[0]
    assert (scheme in botocore.utils.get_environ_proxies(target)) == is_refused

    if is_refused:
        assert "//proxy" not in refused(None, url, match="no proxy")
    else:
        assert url_of(None, url) == f"{target.lower()}/"


def test_where_the_system_has_proxies_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"https": "http://proxy:1"})
    monkeypatch.setattr("urllib.request.proxy_bypass", lambda host: host.startswith("dynamodb.eu-west-1."))

    assert resolve(None, None)
    refused("us-east-1", None, match="no proxy")


# Credentials


def no_credentials(match: str) -> str:
    with pytest.raises(IdempotencyPersistenceConfigError, match=match) as raised:
        credentials_source()()
    return str(raised.value)


@pytest.mark.parametrize(
    ("variables", "credentials"),
    [
        ({}, Credentials("AKIDEXAMPLE", "the-secret", "the-token")),
        ({"AWS_SESSION_TOKEN": ""}, Credentials("AKIDEXAMPLE", "the-secret", None)),
        ({"AWS_SECURITY_TOKEN": "older"}, Credentials("AKIDEXAMPLE", "the-secret", "older")),
        ({"AWS_SECURITY_TOKEN": ""}, Credentials("AKIDEXAMPLE", "the-secret", "the-token")),
        ({"AWS_CREDENTIAL_EXPIRATION": "2049-01-01T00:00:00Z"}, Credentials("AKIDEXAMPLE", "the-secret", "the-token")),
        ({"AWS_PROFILE": "default"}, Credentials("AKIDEXAMPLE", "the-secret", "the-token")),
    ],
    ids=str,
)
def test_the_credentials_of_the_environment_are_boto3s(
    monkeypatch: pytest.MonkeyPatch, config: Any, variables: dict[str, str], credentials: Credentials
) -> None:
    if "AWS_PROFILE" in variables:
        config("[default]\naws_access_key_id = AKIDFILE\naws_secret_access_key = file")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    source = credentials_source()

    assert source() == credentials
    assert source() == Credentials(*get_session().get_credentials().get_frozen_credentials()[:3])
    assert source() is source()


def test_credentials_that_expire_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", "2020-01-01T00:00:00Z")
    monkeypatch.setattr("botocore.credentials.RefreshableCredentials.refresh_needed", lambda *_, **__: True)
    monkeypatch.setattr("botocore.credentials.RefreshableCredentials._is_expired", lambda _: False)
    source = credentials_source()
    assert source().access_key == "AKIDEXAMPLE"

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDNEXT")

    assert source() == Credentials("AKIDNEXT", "the-secret", "the-token")


def test_half_of_the_credentials_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "AKIDEXAMPLE" not in no_credentials("half of the credentials")

    monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", "2049-01-01T00:00:00Z")
    assert "AKIDEXAMPLE" not in no_credentials("no usable credentials")


def test_an_expiration_that_is_no_time_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", "soon")

    no_credentials("no usable credentials")


def test_what_a_source_of_credentials_says_is_not_repeated(monkeypatch: pytest.MonkeyPatch, config: Any, tmp_path: Path) -> None:
    (tmp_path / "source.py").write_text("import sys; sys.exit('the-secret')")
    config(f"[default]\ncredential_process = {sys.executable} -S {tmp_path / 'source.py'}")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")

    assert "the-secret" not in no_credentials("no usable credentials")


def test_no_credentials_at_all_are_refused_with_the_ways_to_get_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    assert "AWS_PROFILE" in no_credentials("no credentials")


def test_the_credentials_of_a_file_are_botocores_and_shared(monkeypatch: pytest.MonkeyPatch, config: Any) -> None:
    config("[default]\naws_access_key_id = AKIDFILE\naws_secret_access_key = file")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")

    assert credentials_source("eu-west-1")() == Credentials("AKIDFILE", "file", None)
    assert settings._session() is settings._session()

    monkeypatch.setenv("AWS_PROFILE", "absent")
    refused(match="AWS configuration")
    no_credentials("no usable credentials")
    assert len(settings._own) == 1


def test_a_role_is_asked_for_in_the_clients_region(monkeypatch: pytest.MonkeyPatch, config: Any) -> None:
    config(
        "[default]\nrole_arn = arn:aws:iam::123456789012:role/mine\nsource_profile = base\n"
        "[profile base]\naws_access_key_id = AKIDFILE\naws_secret_access_key = file"
    )
    for name in LAMBDA:
        monkeypatch.delenv(name)
    regions: list[str] = []

    def assume(_self: Any, _operation: str, _request: Any) -> Any:
        regions.append(_self.meta.region_name)
        made = {"AccessKeyId": "AKIDROLE", "SecretAccessKey": "s", "SessionToken": "t", "Expiration": "2049-01-01T00:00:00Z"}
        return {
            "Credentials": made,
            "AssumedRoleUser": {"AssumedRoleId": "x", "Arn": "arn:aws:sts::123456789012:assumed-role/a/b"},
        }

    monkeypatch.setattr("botocore.client.BaseClient._make_api_call", assume)
    source = credentials_source("ap-south-1")
    assert not regions

    assert source() == source() == Credentials("AKIDROLE", "s", "t")
    assert regions == ["ap-south-1"]


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN"])
@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a b", "\u00e4", "a\x7f", "token\n"])
@pytest.mark.parametrize("expiration", ["", "2049-01-01T00:00:00Z"], ids=["environment", "botocore"])
def test_what_would_break_a_header_is_refused_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, expiration: str
) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", expiration)

    assert value not in no_credentials("no header can carry")


# Certificates


@pytest.fixture
def authority(tmp_path: Path) -> tuple[Path, Path]:
    """The file of an authority of ours, and that of a server of its."""
    return certificates(tmp_path, ("localhost",))


def handshake(client: ssl.SSLContext, chain: Path, name: str = "localhost", *, server: ssl.SSLContext | None = None) -> str:
    """Connect without a network.  The version that both speak; raises as the client does."""
    server = server or ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(chain)
    one, other = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(one, other, server_hostname=name)
    theirs = server.wrap_bio(other, one, server_side=True)
    for _ in range(4):
        with suppress(ssl.SSLWantReadError):
            ours.do_handshake()
        with suppress(ssl.SSLWantReadError):
            theirs.do_handshake()
    return ours.version() or ""


def subject_hash(subject: x509.Name) -> str:
    """What `openssl x509 -subject_hash` tells, of a plain common name in small letters.

    https://docs.openssl.org/3.0/man1/openssl-rehash/
    """
    common_name = str(subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value).lower().encode()
    value = b"\x06\x03\x55\x04\x03\x0c" + bytes([len(common_name)]) + common_name
    attribute = b"\x30" + bytes([len(value)]) + value
    digest = hashlib.sha1(b"\x31" + bytes([len(attribute)]) + attribute).digest()
    return digest[3::-1].hex()


def hashed(folder: Path, authority: Path) -> Path:
    """A directory of certificates as OpenSSL wants it."""
    folder.mkdir()
    name = subject_hash(x509.load_pem_x509_certificate(authority.read_bytes()).subject)
    (folder / f"{name}.0").write_bytes(authority.read_bytes())
    return folder


@pytest.mark.parametrize("name", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_the_authorities_of_a_configured_bundle_are_trusted(
    monkeypatch: pytest.MonkeyPatch, authority: tuple[Path, Path], name: str
) -> None:
    trusted, chain = authority
    monkeypatch.setenv(name, str(trusted))

    assert handshake(tls_context(), chain) == "TLSv1.3"
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(tls_context(), chain, "another")


def test_the_bundle_of_aws_comes_first(monkeypatch: pytest.MonkeyPatch, config: Any, authority: tuple[Path, Path]) -> None:
    trusted, chain = authority
    config(f"[default]\nca_bundle = {trusted}")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/absent")
    monkeypatch.setenv("SSL_CERT_FILE", "/absent")

    assert resolve(None, None)
    assert handshake(tls_context(), chain)

    monkeypatch.setenv("AWS_CA_BUNDLE", "/absent")
    refused(match="cannot read the configured CA bundle")


def test_the_authorities_of_a_directory_are_trusted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, authority: tuple[Path, Path]
) -> None:
    trusted, chain = authority
    monkeypatch.setenv("SSL_CERT_DIR", str(hashed(tmp_path / "hashed", trusted)))

    assert handshake(tls_context(), chain)


@pytest.mark.parametrize("is_complete", [True, False])
def test_a_directory_of_the_systems_is_read_and_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, authority: tuple[Path, Path], is_complete: bool
) -> None:
    trusted, chain = authority
    folder = hashed(tmp_path / "hashed", trusted)
    if is_complete:
        (folder / settings.HASHED_AUTHORITY).touch()
    of_openssl = ssl.DefaultVerifyPaths(str(trusted), str(folder), "", "/absent", "", str(folder))
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: of_openssl)
    monkeypatch.setattr(settings, "HASHED_DIRECTORIES", ())
    loaded: list[ssl.SSLContext] = []
    monkeypatch.setattr(ssl.SSLContext, "load_default_certs", lambda context: loaded.append(context))  # noqa: PLW0108 - to be a method

    context = tls_context()

    if is_complete:
        assert not loaded
        assert context.cert_store_stats()["x509"] == 0  # none was read before it is needed
        assert handshake(context, chain)
        assert context.cert_store_stats()["x509"] == 1
    else:
        assert loaded == [context]


@pytest.mark.parametrize("has_directory", [True, False])
def test_where_the_system_trusts_nobody_botocores_authorities_are_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, has_directory: bool
) -> None:
    folder = str(tmp_path) if has_directory else None
    monkeypatch.setattr(settings, "HASHED_DIRECTORIES", ())
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: ssl.DefaultVerifyPaths(None, folder, "", "", "", ""))
    monkeypatch.setattr(ssl.SSLContext, "load_default_certs", lambda _: None)

    assert tls_context().cert_store_stats()["x509_ca"] > 50


def test_an_authority_that_is_not_ours_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, authority: tuple[Path, Path]
) -> None:
    (tmp_path / "other").mkdir()
    other, _ = certificates(tmp_path / "other", ("localhost",))

    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tls_context(), authority[1])
    monkeypatch.setenv("AWS_CA_BUNDLE", str(other))
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tls_context(), authority[1])


def test_nothing_older_than_1_2_is_spoken(monkeypatch: pytest.MonkeyPatch, authority: tuple[Path, Path]) -> None:
    trusted, chain = authority
    monkeypatch.setenv("AWS_CA_BUNDLE", str(trusted))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.maximum_version = ssl.TLSVersion.TLSv1_2

    assert handshake(tls_context(), chain, server=server) == "TLSv1.2"
    assert tls_context().minimum_version == ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("name", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_one_context_serves_all_until_the_authorities_are_others(
    monkeypatch: pytest.MonkeyPatch, authority: tuple[Path, Path], name: str
) -> None:
    first = tls_context()
    assert tls_context() is first

    monkeypatch.setenv(name, str(authority[0]))

    assert tls_context() is not first


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_a_bundle_without_certificates_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None
) -> None:
    bundle = tmp_path / "bundle.pem"
    if content is not None:
        bundle.write_bytes(content)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))

    refused(match="cannot read the configured CA bundle")
    with pytest.raises(IdempotencyPersistenceConfigError):
        tls_context()
    assert resolve(None, CUSTOM)  # no certificate is asked for there


# What it costs


def test_in_a_lambda_function_nothing_is_imported_for_it(tmp_path: Path) -> None:
    code = """
import json, sys
from persistence._lean_settings import credentials_source, resolve
resolve(None, None), resolve("us-east-1", "http://127.0.0.1:8000"), credentials_source()()
print(json.dumps([name for name in sys.modules if name.partition(".")[0] in
      {"boto3", "botocore", "urllib", "http", "email", "ssl", "pathlib", "logging", "inspect", "dataclasses"}]))
"""
    variables = {**LAMBDA, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}

    told = subprocess.run(
        [sys.executable, "-S", "-c", code], env=variables, check=True, capture_output=True, text=True, timeout=30
    )

    assert json.loads(told.stdout) == []
