# ruff: noqa: PTH110, PTH111, PTH112, PTH113, PTH118, PTH208 - the import of pathlib would be for these few lines alone
"""Where the lean client's requests go, and in whose name: as `boto3.client("dynamodb")` would send them, or not at all.

Where the environment says all, as in Lambda, botocore is not imported.  It is asked where a profile or a file may say more
(`AWS_PROFILE`, `AWS_CONFIG_FILE`, `AWS_SHARED_CREDENTIALS_FILE`, `~/.aws`, `AWS_DATA_PATH`), where boto3 has made its default
session already, and for credentials that are not in the environment, or that expire there.  What the lean client cannot do is
refused with `IdempotencyPersistenceConfigError` when it is made.  Of botocore, this follows version 1.44.

On purpose, some things differ from boto3:

- An endpoint with the account id in its name, which boto3 prefers where it knows the account, is not used, but the Region's.  A
  mode that demands one is refused.
- `AWS_REGION` is the Region where boto3 would have none.  Lambda sets it and `AWS_DEFAULT_REGION` to the same.
- Certificates are verified against the system's authorities, not certifi's or botocore's, unless a bundle is configured, or the
  system has none.  `SSL_CERT_FILE` and `SSL_CERT_DIR` count, as they do for OpenSSL.
- Handlers and plugins of a botocore session are not called.  `AWS_DEFAULTS_MODE` and the settings of retries, which this library
  makes by itself, and of connections mean nothing.
- Of an endpoint's URL, less is understood: no user, no query, no path that would have to be quoted, no zone of an address.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING, Any, Final, NoReturn

from persistence._sigv4 import Credentials
from persistence._values import Value
from persistence.background import ForkLock
from persistence.exceptions import IdempotencyPersistenceConfigError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

ADVICE: Final = 'or choose client="boto3"'

#: The settings that count here, by botocore's names, and the variables that they are read from.
VARIABLES: Final = {
    "region": "AWS_DEFAULT_REGION",
    "use_fips_endpoint": "AWS_USE_FIPS_ENDPOINT",
    "use_dualstack_endpoint": "AWS_USE_DUALSTACK_ENDPOINT",
    "ignore_configured_endpoint_urls": "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
    "endpoint_discovery_enabled": "AWS_ENDPOINT_DISCOVERY_ENABLED",
    "account_id_endpoint_mode": "AWS_ACCOUNT_ID_ENDPOINT_MODE",
    "ca_bundle": "AWS_CA_BUNDLE",
}


#: What the names of a partition's hosts end with, and of its dual-stack hosts.  As in botocore's data/partitions.json.
AWS: Final = ("amazonaws.com", "api.aws")
#: The same of the other partitions, by what the names of their Regions begin with.
PARTITIONS: Final = {
    "cn": ("amazonaws.com.cn", "api.amazonwebservices.com.cn"),
    "eusc-de": ("amazonaws.eu", "api.amazonwebservices.eu"),
    "us-gov": AWS,
    "us-iso": ("c2s.ic.gov", "api.aws.ic.gov"),
    "us-isob": ("sc2s.sgov.gov", "api.aws.scloud"),
    "us-isof": ("csp.hci.ic.gov", "api.aws.hci.ic.gov"),
    "eu-isoe": ("cloud.adc-e.uk", "api.cloud-aws.adc-e.uk"),
}
#: Names of whole partitions, which botocore takes for Regions of theirs.
GLOBAL: Final = {
    "aws-cn-global": "cn",
    "aws-us-gov-global": "us-gov",
    "aws-iso-global": "us-iso",
    "aws-iso-b-global": "us-isob",
    "aws-iso-e-global": "eu-isoe",
    "aws-iso-f-global": "us-isof",
}
#: Partitions in whose Regions botocore finds no dual-stack endpoint, whatever their suffix, and makes no client.
NO_DUAL_STACK: Final = frozenset({"eu-isoe", "us-isof"})
#: The Region of a database on the own machine; its requests are signed for a Region that exists.
LOCAL: Final = "local"
LOCAL_ENDPOINT: Final = "http://localhost:8000"
LOCAL_SIGNING_REGION: Final = "us-east-1"

LETTERS_AND_DIGITS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
#: What a path may have without any quoting.  https://datatracker.ietf.org/doc/html/rfc3986#section-2.3
IN_PATH: Final = LETTERS_AND_DIGITS | frozenset("-._~/")
MAX_LABEL: Final = 63
MAX_HOST: Final = 255
MAX_PORT: Final = 65_535
PORTS: Final = {"http": 80, "https": 443}

#: Amazon Root CA 1, as OpenSSL names its file in a directory of certificates.  A directory that has it is the system's own, and
#: not one to which somebody has added a few.  https://www.amazontrust.com/repository/
HASHED_AUTHORITY: Final = "ce5e74ef.0"
#: Where systems keep such a directory, besides OpenSSL's default: Debian; Fedora and what descends from it.  There, OpenSSL's
#: default is the whole bundle: https://github.com/aws/aws-lambda-base-images/issues/154
HASHED_DIRECTORIES: Final = ("/etc/ssl/certs", "/etc/pki/ca-trust/extracted/pem/directory-hash")


class Endpoint(Value):
    """Where requests go.  `host` is a name or an address, without brackets, and in small letters."""

    __slots__ = __match_args__ = ("is_tls", "host", "port", "host_header", "path")

    def __init__(self, is_tls: bool, host: str, port: int, host_header: str, path: str) -> None:
        self.is_tls = is_tls
        self.host = host
        self.port = port
        self.host_header = host_header
        self.path = path


def resolve(region_name: str | None, endpoint_url: str | None) -> tuple[str, Endpoint]:
    """The Region that requests are signed for, and the endpoint that they go to.

    Args:
        region_name: As of `boto3.client`, before any configured Region.
        endpoint_url: As of `boto3.client`, before any configured endpoint.

    Raises:
        IdempotencyPersistenceConfigError: boto3 would refuse the settings, too, or the lean client cannot follow them: a proxy,
            endpoint discovery, endpoints by account id, the session's default client configuration, data files of one's own.
    """
    session = _session()
    read = _reader(session)
    _refuse_the_impossible(session, read, is_given=endpoint_url is not None)
    name, is_fips = _region(region_name if region_name is not None else read("region"), read("use_fips_endpoint"))
    is_dual_stack = _is_true(read("use_dualstack_endpoint"))
    url = endpoint_url if endpoint_url is not None else _configured_endpoint(session, read)
    _check_variants(name, is_fips=is_fips, is_dual_stack=is_dual_stack, is_given=url is not None)
    region = name
    if url is not None:
        _refuse_dual_stack_host(name, url)
    elif name == LOCAL:
        region, url = LOCAL_SIGNING_REGION, LOCAL_ENDPOINT
    else:
        url = _url(name, is_fips=is_fips, is_dual_stack=is_dual_stack)
    endpoint = parse(url)
    _refuse_proxies(url)
    if _bundle(read) is not None and endpoint.is_tls:
        tls_context()  # now, because the bundle may be none
    return region, endpoint


def credentials_source(region_name: str | None = None) -> Callable[[], Credentials]:
    """What gives the credentials of the moment, to be called for each signature.

    Those of the environment are read once, now.  All others are botocore's, which fetches them again before they expire, and
    raises its own errors if it cannot.

    Args:
        region_name: Where botocore asks for the credentials of a role, if it must and nothing else says so.

    Raises:
        IdempotencyPersistenceConfigError: There are none, or only half of them.  Of the source that is returned: they have a
            character that no header can carry.
    """
    session = _session()
    if session is None:
        given = _of_environment()
        if given is not None:
            return lambda: given
        session = _own_session()
    found = _of_session(session, region_name)
    last: tuple[Any, Credentials] | None = None

    def source() -> Credentials:
        nonlocal last
        known, frozen = last, found.get_frozen_credentials()
        if known is None or known[0] != frozen:
            last = known = frozen, _checked(frozen.access_key, frozen.secret_key, frozen.token)
        return known[1]

    return source


def tls_context() -> ssl.SSLContext:
    """What every connection of the process shares: TLS 1.2 at least, the server's certificate and name verified.

    Made at first use.  Another setting of the authorities is another context.

    Raises:
        IdempotencyPersistenceConfigError: The configured bundle cannot be read, or has no certificate.
    """
    setting = (_bundle(_reader(_session())), os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))
    with _lock:
        if setting not in _contexts:
            _contexts[setting] = _new_context(setting[0])
        return _contexts[setting]


_lock: Final = ForkLock()
_contexts: Final[dict[tuple[str | None, ...], ssl.SSLContext]] = {}
#: botocore's session for the environment that it was made in: one, so that clients share credentials and their refresh.
_own: Final[dict[tuple[tuple[str, str], ...], Any]] = {}


def _refuse(reason: str, error: Exception | None = None, *, is_secret: bool = False) -> NoReturn:
    """Raise, and repeat the error's text unless it may have a secret."""
    raise IdempotencyPersistenceConfigError(f"The lean client {reason}, {ADVICE}", None if is_secret else error) from error


# Who says


def _session() -> Any:
    """The botocore session that boto3 would ask, None if it could not say more than the environment."""
    default = getattr(sys.modules.get("boto3"), "DEFAULT_SESSION", None)
    if default is not None:
        return default._session  # noqa: SLF001 - boto3 shows it nowhere else
    return _own_session() if _may_say_more() else None


def _may_say_more() -> bool:
    """Whether there is a profile, or a file of botocore's."""
    if any(name in os.environ for name in ("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_DATA_PATH")):
        return True
    files = (os.environ.get(name, "") for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"))
    home = os.path.expanduser("~/.aws")
    return os.path.isdir(home) or any(os.path.isfile(os.path.expanduser(os.path.expandvars(file))) for file in files)


def _own_session() -> Any:
    key = tuple(sorted((name, os.environ[name]) for name in os.environ if name.startswith("AWS_") or name == "HOME"))
    with _lock:
        if key not in _own:
            try:
                from botocore.session import get_session
            except ImportError as error:
                _refuse("needs botocore for what the environment does not say: install it, put all settings there", error)
            _own.clear()
            _own[key] = get_session()
        return _own[key]


def _reader(session: Any) -> Callable[[str], Any]:
    """What gives a setting by botocore's name for it, None if it is not set."""
    if session is None:
        return lambda name: os.environ.get(VARIABLES[name])
    from botocore.exceptions import BotoCoreError

    def read(name: str) -> Any:
        try:
            return session.get_config_variable(name)
        except BotoCoreError as error:
            _refuse("cannot read the AWS configuration: correct it", error)

    return read


def _is_true(value: object) -> bool:
    return str(value).lower() == "true"


def _refuse_the_impossible(session: Any, read: Callable[[str], Any], *, is_given: bool) -> None:
    if str(read("account_id_endpoint_mode") or "").lower() not in {"", "preferred", "disabled"}:
        _refuse("has no endpoints by account id: set AWS_ACCOUNT_ID_ENDPOINT_MODE to disabled")
    if not is_given and str(read("endpoint_discovery_enabled") or "auto").lower().strip() not in {"auto", "false"}:
        _refuse("does not discover endpoints: set AWS_ENDPOINT_DISCOVERY_ENABLED to false")
    if session is None:
        return
    if session.get_default_client_config() is not None:
        _refuse("does not know the client configuration of a session: leave it out")
    if _has_own_data(session.get_component("data_loader")):
        _refuse("does not read endpoints from AWS_DATA_PATH or ~/.aws/models: set AWS_ENDPOINT_URL_DYNAMODB")


def _has_own_data(loader: Any) -> bool:
    """Whether the user has put other endpoints in the place of botocore's."""
    names = ("endpoints", "partitions", os.path.join("dynamodb", "2012-08-10", "endpoint-rule-set-1"))
    folders = [folder for folder in loader.search_paths if folder != loader.BUILTIN_DATA_PATH]
    return any(
        os.path.isfile(os.path.join(folder, f"{name}.json{packing}"))
        for folder in folders
        for name in names
        for packing in ("", ".gz")
    )


# Region and endpoint


def _region(name: str | None, use_fips: object) -> tuple[str, bool]:
    """The Region, and whether its FIPS endpoint is wanted, which the older of two ways says in the name."""
    if name is None:
        name = os.environ.get("AWS_REGION") or None
    if name is None:
        _refuse("knows no Region: set AWS_DEFAULT_REGION, or give region_name")
    plain = name.replace("fips-", "").replace("-fips", "")
    if not _is_label(name) or name.isdigit() or not _is_label(plain):
        _refuse(f"cannot use the Region {name!r}: give the name of one")
    return plain, plain != name or _is_true(use_fips)


def _is_label(text: str) -> bool:
    """Whether it is one label of a host name."""
    is_clean = LETTERS_AND_DIGITS.issuperset(text.replace("-", ""))
    return is_clean and 0 < len(text) <= MAX_LABEL and text[0] != "-" and text[-1] != "-"


def _partition_of(region: str) -> str:
    """What the names of its partition's Regions begin with; "" for the commercial one, and for all that is in none."""
    if region in GLOBAL:
        return GLOBAL[region]
    prefix, area, number = ("", "", *region.rsplit("-", 2))[-3:]
    return prefix if prefix in PARTITIONS and area and number.isdigit() else ""


def _check_variants(region: str, *, is_fips: bool, is_dual_stack: bool, is_given: bool) -> None:
    if is_dual_stack and region not in GLOBAL and _partition_of(region) in NO_DUAL_STACK:
        _refuse(f"finds no dual-stack endpoint in {region}: unset AWS_USE_DUALSTACK_ENDPOINT")
    if region == LOCAL and not is_given and (is_fips or is_dual_stack):
        _refuse("finds no FIPS or dual-stack endpoint on the own machine: unset them")


def _url(region: str, *, is_fips: bool, is_dual_stack: bool) -> str:
    """The endpoint of a Region, see https://docs.aws.amazon.com/general/latest/gr/ddb.html."""
    key = _partition_of(region)
    suffix = PARTITIONS.get(key, AWS)[is_dual_stack]
    # All of GovCloud's endpoints are FIPS endpoints, under their plain names.
    service = "dynamodb-fips" if is_fips and (is_dual_stack or key != "us-gov") else "dynamodb"
    return f"https://{service}.{region}.{suffix}"


def _configured_endpoint(session: Any, read: Callable[[str], Any]) -> str | None:
    if _is_true(read("ignore_configured_endpoint_urls")):
        return None
    for name in ("AWS_ENDPOINT_URL_DYNAMODB", "AWS_ENDPOINT_URL"):
        if url := os.environ.get(name):
            return url
    if session is None:
        return None
    profile = session.get_scoped_config()
    if "services" in profile:
        services = session.full_config.get("services", {}).get(profile["services"])
        of_dynamodb = services.get("dynamodb", {}) if services else None
        if not isinstance(of_dynamodb, dict):
            _refuse("cannot read the AWS configuration: the profile names a section of services that is none")
        if url := of_dynamodb.get("endpoint_url"):
            return str(url)
    return profile.get("endpoint_url") or None


def _refuse_dual_stack_host(region: str, url: str) -> None:
    """Because botocore does: it wants to be told by the setting."""
    _, suffix = PARTITIONS.get(_partition_of(region), AWS)
    if _authority(url) in {f"dynamodb.{region}.{suffix}", f"search-dynamodb.{region}.{suffix}"}:
        _refuse("takes no dual-stack endpoint as a URL: set AWS_USE_DUALSTACK_ENDPOINT")


def parse(url: str) -> Endpoint:
    """Take an endpoint's URL apart: http or https, a host, and at most a port and a plain path."""
    scheme, _, _ = url.partition("://")
    authority = _authority(url)
    path = url[len(scheme) + 3 + len(authority) :] or "/"
    scheme = scheme.lower()
    host, port = _host_and_port(authority)
    if scheme not in PORTS or host is None or port is None or not _is_plain(path):
        _refuse("cannot use the endpoint's URL: give http or https, a host, a port, and nothing else")
    number = int(port) if port else PORTS[scheme]
    if not 0 < number <= MAX_PORT:
        _refuse("cannot use the endpoint's URL: give a port that exists")
    shown = f"[{host}]" if ":" in host else host
    return Endpoint(
        is_tls=scheme == "https",
        host=host,
        port=number,
        host_header=shown if number == PORTS[scheme] else f"{shown}:{number}",
        path=path,
    )


def _authority(url: str) -> str:
    """Host and port as the URL has them."""
    return url.partition("://")[2].partition("/")[0]


def _host_and_port(authority: str) -> tuple[str | None, str | None]:
    """The host in small letters, and the port's digits, "" if there are none; None for what is neither."""
    host, colon, port = authority.rpartition(":")
    if not colon or authority.endswith("]"):
        host, port = authority, ""
    is_port = not port or (port.isascii() and port.isdigit() and len(port) <= 5)  # noqa: PLR2004 - 65535
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        is_host = _is_ipv6(host)
    else:
        is_host = len(host) <= MAX_HOST and all(map(_is_label, host.split(".")))
    return host.lower() if is_host else None, port if is_port else None


def _is_ipv6(text: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6, text)
    except (OSError, ValueError):  # ValueError: it has a NUL, or is no ASCII
        return False
    return True


def _is_plain(path: str) -> bool:
    """Whether it means the same with and without normalisation, to any server."""
    parts = path[1:].split("/")
    return path[0] == "/" and IN_PATH.issuperset(path) and not {".", ".."}.intersection(parts) and "" not in parts[:-1]


def _refuse_proxies(url: str) -> None:
    """As botocore: `ALL_PROXY` means nothing, and `NO_PROXY` is obeyed."""
    scheme = url.partition(":")[0].lower()
    is_set = any(name.lower() == f"{scheme}_proxy" for name in os.environ)
    if not is_set and sys.platform not in {"darwin", "win32"}:  # those have proxies of the system's, too
        return
    from urllib.request import getproxies, proxy_bypass

    if getproxies().get(scheme) and not proxy_bypass(_authority(url)):
        _refuse(f"goes through no proxy: put the endpoint's host into NO_PROXY, or unset {scheme.upper()}_PROXY")


# Credentials


def _of_environment() -> Credentials | None:
    """Those of the environment, None if there are none, or they expire and are to be read again.  Order as in botocore."""
    access_key = os.environ.get("AWS_ACCESS_KEY_ID")
    if not access_key or os.environ.get("AWS_CREDENTIAL_EXPIRATION"):
        return None
    secret_key = os.environ.get("AWS_SECRET_ACCESS_KEY")
    if not secret_key:
        _refuse("found only half of the credentials: set AWS_SECRET_ACCESS_KEY, too, or unset AWS_ACCESS_KEY_ID")
    token = os.environ.get("AWS_SECURITY_TOKEN") or os.environ.get("AWS_SESSION_TOKEN") or None
    return _checked(access_key, secret_key, token)


def _of_session(session: Any, region_name: str | None) -> Any:
    from botocore.credentials import create_credential_resolver
    from botocore.exceptions import BotoCoreError

    with _lock:
        try:
            if session in _own.values():
                session.register_component("credential_provider", create_credential_resolver(session, region_name=region_name))
            found = session.get_credentials()
        except (BotoCoreError, ValueError) as error:
            _refuse("found no usable credentials: see the cause, and correct them", error, is_secret=True)
    if found is None:
        _refuse(
            "found no credentials: give the function a role, set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "choose a profile by AWS_PROFILE"
        )
    return found


def _checked(access_key: str, secret_key: str, token: str | None) -> Credentials:
    """Refuse what would end a header too early: the transport writes headers as they are."""
    for part in (access_key, token or ""):
        if not part.isascii() or not part.isprintable() or " " in part:
            _refuse(
                "found a character in the credentials that no header can carry: correct AWS_ACCESS_KEY_ID or AWS_SESSION_TOKEN"
            )
    return Credentials(access_key, secret_key, token or None)


# TLS


def _bundle(read: Callable[[str], Any]) -> str | None:
    """The configured file of authorities, None if none is."""
    path = read("ca_bundle")
    if path is None:
        path = os.environ.get("REQUESTS_CA_BUNDLE")
    if path is not None and not str(path).strip():
        _refuse("finds an empty name where a CA bundle is configured: correct AWS_CA_BUNDLE, ca_bundle, or REQUESTS_CA_BUNDLE")
    return None if path is None else str(path)


def _new_context(bundle: str | None) -> ssl.SSLContext:
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies certificates and names
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if bundle is None:
        _trust_the_system(context)
        return context
    try:
        context.load_verify_locations(cafile=bundle)
    except OSError as error:
        _refuse("cannot read the configured CA bundle: correct AWS_CA_BUNDLE, ca_bundle, or REQUESTS_CA_BUNDLE", error)
    return context


def _trust_the_system(context: ssl.SSLContext) -> None:
    """Trust the system's authorities: from its directory if it has one, because reading a whole bundle takes 50 ms."""
    import ssl

    paths = ssl.get_default_verify_paths()
    if not os.environ.get("SSL_CERT_FILE") and not os.environ.get("SSL_CERT_DIR"):
        for directory in (paths.openssl_capath, *HASHED_DIRECTORIES):
            if os.path.exists(os.path.join(directory, HASHED_AUTHORITY)):
                context.load_verify_locations(capath=directory)
                return
    if paths.cafile is None and (paths.capath is None or not os.listdir(paths.capath)) and sys.platform != "win32":
        from botocore.httpsession import where

        context.load_verify_locations(cafile=where())
        return
    context.load_default_certs()
