"""Pure: AWS Signature Version 4 of a DynamoDB request, byte for byte as botocore's `SigV4Auth` makes it.

A request is `POST` with a JSON body; botocore signs the headers content-type, host, x-amz-date, x-amz-security-token if there is
a token, and x-amz-target.  https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
"""

from __future__ import annotations

from hashlib import sha256
from hmac import digest
from time import gmtime
from typing import Final

from persistence._values import Value

ALGORITHM: Final = "AWS4-HMAC-SHA256"
SERVICE: Final = "dynamodb"
CONTENT_TYPE: Final = "application/x-amz-json-1.0"

#: What a path keeps as it is; all else becomes %XX, the percent sign of an escape included.
_PLAIN: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-~/")


class Credentials(Value):
    """Whose signature it is; *token* only with temporary credentials."""

    __slots__ = __match_args__ = ("access_key", "secret_key", "token")

    def __init__(self, access_key: str, secret_key: str, token: str | None = None) -> None:
        self.access_key = access_key
        self.secret_key = secret_key
        self.token = token

    def __repr__(self) -> str:
        return "Credentials(...)"


class _Moment:
    """What all requests of one second and one identity have in common.  No tuple: its repr would show the key.

    Attributes:
        before_target: The canonical request up to the target.
        before_hash: From there to the body's hash.
        before_request_hash: The string to sign up to the canonical request's hash.
        key: The signing key.
        headers: The headers up to the signature.
    """

    __slots__ = ("before_hash", "before_request_hash", "before_target", "credentials", "headers", "key", "second")

    def __init__(
        self,
        credentials: Credentials,
        second: int,
        *,
        before_target: str,
        before_hash: str,
        before_request_hash: str,
        key: bytes,
        headers: str,
    ) -> None:
        self.credentials = credentials
        self.second = second
        self.before_target = before_target
        self.before_hash = before_hash
        self.before_request_hash = before_request_hash
        self.key = key
        self.headers = headers


class Signer:
    """Signs requests to one endpoint.  Threads may share it.

    Args:
        region: Of the endpoint.
        host_header: As it is sent: in small letters, with the port where that is not the scheme's own.
        path: Of the endpoint's URL.
    """

    __slots__ = ("_host", "_key", "_moment", "_path", "_region")

    def __init__(self, region: str, host_header: str, path: str = "/") -> None:
        self._region = region
        self._host = host_header
        self._path = canonical_path(path)
        self._key: tuple[str, str, bytes] = ("", "", b"")
        self._moment: _Moment | None = None

    def headers(self, credentials: Credentials, now: float, target: str, body: bytes) -> str:
        """The headers that sign a request, a line each: X-Amz-Date, X-Amz-Security-Token, Authorization.

        Args:
            credentials: Whose signature it is.
            now: Epoch seconds.
            target: The header X-Amz-Target.
            body: As it is sent.

        Raises:
            ValueError: the credentials hold what no header can; the text does not show them.
        """
        second = int(now)
        moment = self._moment  # read once: another thread may replace it
        if (
            moment is None
            or moment.second != second
            or (moment.credentials is not credentials and moment.credentials != credentials)
        ):
            self._moment = moment = self._moment_of(credentials, second)
        request = f"{moment.before_target}{target}{moment.before_hash}{sha256(body).hexdigest()}"
        to_sign = f"{moment.before_request_hash}{sha256(request.encode()).hexdigest()}"
        return f"{moment.headers}{digest(moment.key, to_sign.encode(), 'sha256').hex()}\r\n"

    def _moment_of(self, credentials: Credentials, second: int) -> _Moment:
        access_key, token = credentials.access_key, credentials.token
        if not _fits_a_header(access_key + (token or "")):
            raise ValueError("The credentials hold a line break or another character that no header can hold")
        time = gmtime(second)
        day = f"{time.tm_year:04}{time.tm_mon:02}{time.tm_mday:02}"
        date = f"{day}T{time.tm_hour:02}{time.tm_min:02}{time.tm_sec:02}Z"
        scope = f"{day}/{self._region}/{SERVICE}/aws4_request"
        signed = f"content-type;host;x-amz-date;{'x-amz-security-token;' if token else ''}x-amz-target"
        token_line = f"x-amz-security-token:{' '.join(token.split())}\n" if token else ""
        headers = f"X-Amz-Date: {date}\r\n" + (f"X-Amz-Security-Token: {token}\r\n" if token else "")
        common = f"content-type:{CONTENT_TYPE}\nhost:{self._host}\nx-amz-date:{date}\n{token_line}"
        return _Moment(
            credentials,
            second,
            before_target=f"POST\n{self._path}\n\n{common}x-amz-target:",
            before_hash=f"\n\n{signed}\n",
            before_request_hash=f"{ALGORITHM}\n{date}\n{scope}\n",
            key=self._key_of(credentials.secret_key, day),
            headers=f"{headers}Authorization: {ALGORITHM} Credential={access_key}/{scope}, SignedHeaders={signed}, Signature=",
        )

    def _key_of(self, secret_key: str, day: str) -> bytes:
        """The signing key, which changes with the day and the secret."""
        known_secret, known_day, key = self._key
        if known_day != day or known_secret != secret_key:
            key = f"AWS4{secret_key}".encode()
            for part in (day, self._region, SERVICE, "aws4_request"):
                key = digest(key, part.encode(), "sha256")
            self._key = (secret_key, day, key)
        return key


def canonical_path(path: str) -> str:
    """The path as it is signed: without dot segments and double slashes, quoted as it stands."""
    kept: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            del kept[-1:]
        elif segment not in ("", "."):
            kept.append(segment)
    start = "/" if path.startswith("/") or not path else ""
    end = "/" if path.endswith("/") and kept else ""
    plain = f"{start}{'/'.join(kept)}{end}"
    return "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in plain.encode())


def _fits_a_header(text: str) -> bool:
    return text.isascii() and text.isprintable()
