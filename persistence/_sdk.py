"""What this library asks of a boto3 client while it sends a request, a client that the user gave included.

The SDK's retries know no deadline: a throttled request of the standard mode takes seconds, and what they hide makes the outcome
of a write uncertain.  So the SDK tries once, and `Retries` does the rest.  Other requests of the same client are left alone.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any, Final
from zlib import crc32

from persistence._retries import REFUSED, is_busy, is_sending, is_unknown

#: Registered once per client, however many stores use it.
HANDLER: Final = "lambda-idempotency"


def prepare(client: object) -> None:
    """Have the client try each request of this library once, and check the answer's checksum.

    By an event of botocore's, which a client that is not boto3's does not have: it is used as it is.
    https://boto3.amazonaws.com/v1/documentation/api/latest/guide/events.html
    """
    sdk = sys.modules.get("botocore.client")  # where nobody has imported it, the client cannot be boto3's
    if sdk is None or not isinstance(client, sdk.BaseClient):
        return
    service = client.meta.service_model.service_id.hyphenize()
    client.meta.events.register_first(f"needs-retry.{service}", partial(_end_tries, client), unique_id=HANDLER)


def _end_tries(
    client: Any,
    response: tuple[Any, dict[str, Any]] | None,
    caught_exception: Exception | None,
    operation: Any,
    endpoint: Any = None,  # noqa: ARG001 - what botocore passes is named, so that no mapping need be made of it in each call
    attempts: Any = None,  # noqa: ARG001
    request_dict: Any = None,  # noqa: ARG001
    event_name: Any = None,  # noqa: ARG001
    **_: Any,
) -> None:
    """Raise what the SDK would retry, as it would raise it in the end.  Any other answer goes its usual way."""
    if not is_sending.get():
        return
    if response is None:
        assert caught_exception is not None  # one of the two
        raise caught_exception
    http, parsed = response
    code = parsed["Error"].get("Code") if "Error" in parsed else ""
    if code == REFUSED:
        return  # every duplicate's answer, and whole: JSON that was cut off is none
    _check_whole(http)
    if "Error" in parsed:
        error = client.exceptions.from_code(code)(parsed, operation.name)
        if is_busy(error) or is_unknown(error):
            raise error


def _check_whole(http: Any) -> None:
    """Raise if the answer was cut off: the SDK checks that only in its retries, and takes a cut read for a missing item."""
    try:
        expected = http.headers["x-amz-crc32"]
    except KeyError:
        return
    if crc32(http.content) != int(expected):
        from botocore.exceptions import ChecksumError

        raise ChecksumError(checksum_type="crc32", expected_checksum=expected, actual_checksum="another")
