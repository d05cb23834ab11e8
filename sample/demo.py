"""`python -m sample.demo`: the sample's functions on an embedded DynamoDB, S3 and Valkey, and what is in them at each step.

Exits with 1 if anything is not as stated.  Nothing leaves this machine: the only addresses that are known here are the embedded
ones, and the credentials are no credentials.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

from sample import local_dynamodb, local_valkey
from sample.report import Report

if TYPE_CHECKING:
    from typing import TextIO

#: What template.yaml and Lambda give to the functions.
FUNCTIONS_ENVIRONMENT: Final = {
    "IDEMPOTENCY_TABLE": "idempotency",
    "SHARED_TABLE": "shared",
    "CHARGES_TABLE": "charges",
    "ACCOUNTS_TABLE": "accounts",
    "RESULTS_BUCKET": "results",
    "POWERTOOLS_METRICS_NAMESPACE": "IdempotentPayments",
    "POWERTOOLS_METRICS_DISABLED": "true",  # they are log lines, and this is no log
    "AWS_REGION": "eu-west-1",
    "AWS_DEFAULT_REGION": "eu-west-1",
    "AWS_ACCESS_KEY_ID": "demo",
    "AWS_SECRET_ACCESS_KEY": "demo",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


def main(out: TextIO) -> int:
    """Tell the story.  Returns the exit code."""
    report = Report(out)
    report.say("Lambda functions on an embedded DynamoDB and S3 (moto, one request at a time) and Valkey")
    with local_dynamodb.running() as endpoint, local_valkey.running() as cache_url:
        set_environment(endpoint, cache_url)
        # Imported here: the functions read their environment when they are imported, as on Lambda.
        from sample import story

        story.create_tables_and_bucket()
        story.tell(report)
    report.sum_up()
    return report.exit_code


def set_environment(endpoint: str, cache_url: str) -> None:
    """Point the functions, in this process and in those that it starts, at the embedded servers and at nothing else."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "POWERTOOLS_")):  # the caller's accounts, endpoints and switches
            del os.environ[name]
    endpoints = {"AWS_ENDPOINT_URL_DYNAMODB": endpoint, "AWS_ENDPOINT_URL_S3": endpoint}
    os.environ.update(FUNCTIONS_ENVIRONMENT, **endpoints, CACHE_URL=cache_url)
    os.environ.update(NO_PROXY=local_dynamodb.HOST, no_proxy=local_dynamodb.HOST)


if __name__ == "__main__":
    sys.exit(main(sys.stdout))
