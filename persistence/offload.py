"""Results that are too large for a record, kept as objects elsewhere.  The store writes the object first and its place second."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from persistence._checks import check_client, check_mapping, check_sdk, check_text
from persistence._retries import error_code
from persistence._sdk import prepare
from persistence.background import ForkLock, in_forked_child

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from boto3.session import Session
    from botocore.config import Config

#: Seconds.  A result of several megabytes takes longer than a record.
CONNECT_TIMEOUT: Final = 1
READ_TIMEOUT: Final = 5
MAX_POOL_CONNECTIONS: Final = 50

#: Names this library to AWS Support and in the user's own CloudTrail.
USER_AGENT: Final = "lambda-idempotency"

#: What S3 answers to a GetObject of what is not there.
MISSING: Final = frozenset({"NoSuchKey", "NoSuchBucket", "404"})

_client_lock = ForkLock()


class ResultOffload(Protocol):
    """Keeps large results.  Called from any thread; the store retries what it knows to be a trouble of the moment."""

    def put(self, name: str, body: bytes) -> str:
        """Keep the body under the name, and return its place for `get`.

        The name is made of the key's digest, the attempt's owner token and the body's digest: it is never given twice for two
        bodies, so a put that is repeated writes the same again.
        """
        ...

    def get(self, location: str, at_most: int) -> bytes:
        """The body that is kept there; of a longer one, at least one byte more than *at_most*, so that the store notices.

        Raises:
            LookupError: there is none any more.
        """
        ...


class S3Client(Protocol):
    """What is used of a boto3 client for S3."""

    put_object: Callable[..., Any]
    get_object: Callable[..., Any]


class S3ResultOffload:
    """Keeps large results in an S3 bucket; needs PutObject and GetObject below the prefix.

    Nothing here deletes an object: give the prefix a lifecycle rule that expires objects later than the longest
    `expires_after_seconds`.  It also takes those of attempts that died before their record was completed.  Without ListBucket on
    the bucket, S3 calls a missing object "access denied".

    Args:
        bucket: The bucket's name.
        prefix: What each object's key begins with, such as `idempotency/`.
        boto_config: Merged over this class's own settings of the client.
        boto3_session: Makes the client; the process's default session if left out.
        boto3_client: The client to use; *boto_config* and *boto3_session* are then ignored.  The store does the retries of its
            own requests, whatever the client's settings.
        put_options: Further arguments of each PutObject, such as `{"ServerSideEncryption": "aws:kms"}`.
        get_options: Further arguments of each GetObject, such as `{"ExpectedBucketOwner": "123456789012"}`.

    Raises:
        TypeError: an option is of another type than it must be.
        ValueError: the bucket has no name.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        boto_config: Config | None = None,
        boto3_session: Session | None = None,
        boto3_client: S3Client | None = None,
        put_options: Mapping[str, Any] | None = None,
        get_options: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(bucket, str) or not bucket:
            raise ValueError(f"bucket must be a bucket's name, not {bucket!r}")
        check_text("prefix", prefix)
        check_sdk(boto3_session, boto_config)
        check_mapping("put_options", put_options)
        check_mapping("get_options", get_options)
        self.bucket = bucket
        self.prefix = prefix or ""
        self._boto_config = boto_config
        self._boto3_session = boto3_session
        self._put_options = dict(put_options or {})
        self._get_options = dict(get_options or {})
        self._client: S3Client | None = None
        self._is_own_client = False
        if boto3_client is not None:
            self.client = boto3_client

    @property
    def client(self) -> S3Client:
        """The S3 client in use.  Made when the first large result comes, which in most functions is never."""
        if self._client is None:
            with _client_lock:
                if self._client is None:  # else another thread was first
                    self.client = self._new_client()
                    self._is_own_client = True
                    in_forked_child(self)
        return cast("S3Client", self._client)

    @client.setter
    def client(self, client: S3Client) -> None:
        check_client("boto3_client", client, "a boto3 client for S3", ("put_object", "get_object"))
        prepare(client)
        self._client = client
        self._is_own_client = False

    def after_fork(self) -> None:
        """In a forked child: drop the client that this offload has made, whose connections are the parent's."""
        if self._is_own_client:
            self._client = None

    def _new_client(self) -> S3Client:
        import boto3
        from botocore.config import Config

        config = Config(
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=READ_TIMEOUT,
            max_pool_connections=MAX_POOL_CONNECTIONS,
            user_agent_extra=USER_AGENT,
        )
        if self._boto_config is not None:
            config = config.merge(self._boto_config)
        client: S3Client = (self._boto3_session or boto3).client("s3", config=config)
        return client

    def put(self, name: str, body: bytes) -> str:
        """Write the object.  Its place is `s3://bucket/key`."""
        key = f"{self.prefix}{name}"
        self.client.put_object(Bucket=self.bucket, Key=key, Body=body, **self._put_options)
        return f"s3://{self.bucket}/{key}"

    def get(self, location: str, at_most: int) -> bytes:
        """Read the object, from whichever bucket it was written to."""
        bucket, slash, key = location.removeprefix("s3://").partition("/")
        if not (location.startswith("s3://") and bucket and slash and key):
            raise LookupError(f"{location} is no place in S3")
        try:
            answer = self.client.get_object(Bucket=bucket, Key=key, **self._get_options)
        except Exception as error:
            if error_code(error) in MISSING:
                raise LookupError(f"{location} is gone") from error
            raise
        with answer["Body"] as content:
            body: bytes = content.read(at_most + 1)
        expected = min(answer["ContentLength"], at_most + 1)
        if len(body) < expected:  # the SDK only checks what is read without a limit
            from botocore.exceptions import IncompleteReadError

            raise IncompleteReadError(actual_bytes=len(body), expected_bytes=expected)
        return body

    def __repr__(self) -> str:
        return f"S3ResultOffload(bucket={self.bucket!r}, prefix={self.prefix!r})"
