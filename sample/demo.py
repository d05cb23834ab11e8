"""`python -m sample.demo`: the sample's functions on an embedded DynamoDB and S3, and what is in the tables at each step.

Exits with 1 if anything is not as stated.  Nothing leaves this machine: the only address that boto3 knows here is the embedded
one, and the credentials are no credentials.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

from sample.local_dynamodb import HOST, running
from sample.report import Report

if TYPE_CHECKING:
    from typing import TextIO

#: What template.yaml and Lambda give to the functions.
FUNCTIONS_ENVIRONMENT: Final = {
    "IDEMPOTENCY_TABLE": "idempotency",
    "CHARGES_TABLE": "charges",
    "ACCOUNTS_TABLE": "accounts",
    "RESULTS_BUCKET": "results",
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
    report.say("Idempotent Lambda functions on an embedded DynamoDB and S3 (moto, one request at a time)")
    with running() as endpoint:
        set_environment(endpoint)
        # Imported here: the functions read their environment when they are imported, as on Lambda.
        from sample import story

        story.create_tables_and_bucket()
        story.tell(report)
    report.sum_up()
    return report.exit_code


def set_environment(endpoint: str) -> None:
    """Point boto3, in this process and in those that it starts, at the endpoint and at nothing else."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "POWERTOOLS_")):  # the caller's accounts, endpoints and switches
            del os.environ[name]
    endpoints = {"AWS_ENDPOINT_URL_DYNAMODB": endpoint, "AWS_ENDPOINT_URL_S3": endpoint}
    os.environ.update(FUNCTIONS_ENVIRONMENT, **endpoints, NO_PROXY=HOST, no_proxy=HOST)


if __name__ == "__main__":
    sys.exit(main(sys.stdout))
