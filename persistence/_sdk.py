"""What this library asks of a boto3 client while it sends a request, a client that the user gave included.

The SDK's retries know no deadline: a throttled request of the standard mode takes seconds, and what they hide makes the outcome
of a write uncertain.  So the SDK tries once, and `Retries` does the rest.  Other requests of the same client are left alone.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any, Final
from zlib import crc32

from persistence._retries import is_busy, is_sending, is_unknown

#: Registered once per client, however many stores use it.
CHECKSUM_HANDLER: Final = "lambda-idempotency-checksum"
RETRY_HANDLER: Final = "lambda-idempotency-retry"


def prepare(client: object) -> None:
    """Have the client try each request of this library once, and check the answer's checksum.

    By botocore's events, which a client that is not boto3's does not have: it is used as it is.
    https://boto3.amazonaws.com/v1/documentation/api/latest/guide/events.html
    """
    sdk = sys.modules.get("botocore.client")  # where nobody has imported it, the client cannot be boto3's
    if sdk is None or not isinstance(client, sdk.BaseClient):
        return
    events, service = client.meta.events, client.meta.service_model.service_id.hyphenize()
    events.register("before-parse.dynamodb", _refuse_cut_answer, unique_id=CHECKSUM_HANDLER)
    events.register_first(f"needs-retry.{service}", partial(_end_tries, client), unique_id=RETRY_HANDLER)


def _refuse_cut_answer(response_dict: dict[str, Any], **_: Any) -> None:
    """Check an answer's checksum, as the SDK does only when it retries: it would take a cut read for a missing item."""
    if not is_sending.get():
        return
    expected = response_dict["headers"].get("x-amz-crc32")
    if expected is not None and crc32(response_dict["body"]) != int(expected):
        from botocore.exceptions import ChecksumError

        raise ChecksumError(checksum_type="crc32", expected_checksum=expected, actual_checksum="another")


def _end_tries(
    client: Any, response: tuple[Any, dict[str, Any]] | None, caught_exception: Exception | None, operation: Any, **_: Any
) -> None:
    """Raise what the SDK would retry, as it would raise it in the end.  Any other answer goes its usual way."""
    if not is_sending.get():
        return
    if caught_exception is not None:
        raise caught_exception
    parsed = {} if response is None else response[1]
    if "Error" not in parsed:
        return
    error = client.exceptions.from_code(parsed["Error"].get("Code"))(parsed, operation.name)
    if is_busy(error) or is_unknown(error):
        raise error
