"""One cold start: `python cold_start.py KIND CONTENDER`.  Says its CPU seconds, and the peak of its memory in bytes.

Each contender is what a function does before its first answer: imports, construction, one call with a new key.  KIND is `alone`,
or `after-client` in a function that has made a client of boto3 for itself.  Nothing is imported here for which a contender would
pay.
"""

from __future__ import annotations

import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NOTHING = "an interpreter that does nothing"
RAW = "raw boto3"
TABLE = "granting"
EVENT = {"id": "order-2026-000042", "amount": 1250}
RESULT = {"statusCode": 200, "body": "paid"}


class Context:
    """A Lambda context, as far as it is read."""

    function_name = memory_limit_in_mb = invoked_function_arn = ""
    aws_request_id = "5f0c2d0e-7a5b-4d1c-9a3e-0b9f8e7d6c5b"

    @staticmethod
    def get_remaining_time_in_millis() -> int:
        """Half a minute."""
        return 30_000


def handler(event: Any, context: Any) -> Any:  # noqa: ARG001 - what Lambda passes
    """The user's function."""
    return RESULT


def nothing() -> None:
    """The interpreter alone."""


def raw_boto3() -> None:
    """Claim and completion by hand, with the arguments that this library would send."""
    import boto3

    client = boto3.client("dynamodb")
    key = {"id": {"S": "orders.handler#0123456789abcdef0123456789abcdef"}}
    owner = {"S": "0123456789abcdef0123456789abcdef"}
    lease, expiry = {"N": "1900000031000"}, {"N": "1900003600"}
    client.put_item(
        TableName=TABLE,
        Item={
            **key,
            "status": {"S": "INPROGRESS"},
            "expiration": expiry,
            "in_progress_expiration": lease,
            "owner_token": owner,
            "generation": {"N": "1"},
            "holder": {"S": Context.aws_request_id},
        },
        ConditionExpression="attribute_not_exists(#id)",
        ExpressionAttributeNames={"#id": "id"},
        ReturnValuesOnConditionCheckFailure="ALL_OLD",
    )
    handler(EVENT, Context())
    client.update_item(
        TableName=TABLE,
        Key=key,
        UpdateExpression="SET #response_data = :response_data, #expiry = :expiry, #status = :status",
        ConditionExpression="#owner_token = :owner_token",
        ExpressionAttributeNames={
            "#response_data": "data",
            "#expiry": "expiration",
            "#status": "status",
            "#owner_token": "owner_token",
        },
        ExpressionAttributeValues={
            ":response_data": {"S": '{"body": "paid", "statusCode": 200}'},
            ":expiry": expiry,
            ":status": {"S": "COMPLETED"},
            ":owner_token": owner,
        },
        ReturnValuesOnConditionCheckFailure="ALL_OLD",
    )


def powertools() -> None:
    """The same by Powertools."""
    from aws_lambda_powertools.utilities.idempotency import DynamoDBPersistenceLayer, IdempotencyConfig, idempotent

    store: Any = DynamoDBPersistenceLayer(TABLE)
    decorated: Any = idempotent(persistence_store=store, config=IdempotencyConfig(event_key_jmespath="id"))(handler)
    decorated(EVENT, Context())


def ours(**options: Any) -> None:
    """The same by this library, with a boto3 client that it makes."""
    from idempotency import DynamoDBPersistenceLayer, IdempotencyConfig, idempotent

    store: Any = DynamoDBPersistenceLayer(TABLE, **options)
    decorated: Any = idempotent(persistence_store=store, config=IdempotencyConfig(event_key_jmespath="id"))(handler)
    decorated(EVENT, Context())


def lean() -> None:
    """The same by this library with its lean client."""
    ours(client="lean")


CONTENDERS = {
    NOTHING: nothing,
    RAW: raw_boto3,
    "Powertools": powertools,
    "this library, own boto3 client": ours,
    "this library, lean client": lean,
}


def peak_bytes() -> int:
    """The most memory that the process had.

    Not `ru_maxrss`, which knows the memory of the process that started this one, too: Linux counts it in at `exec`.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123 - pathlib costs a millisecond
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(kind: str, contender: str) -> None:
    """Start cold."""
    if kind == "after-client":
        import boto3

        boto3.client("dynamodb")
    CONTENDERS[contender]()
    sys.stdout.write(f"{time.process_time()} {peak_bytes()}\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
