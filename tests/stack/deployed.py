"""A stack on the emulator: what `sample.smoke` sees of one, and what an administrator of the account sees."""

from __future__ import annotations

import json
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Final

from sample.smoke import Stack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stack.emulator import Emulator

    Document = dict[str, Any]

TABLES: Final = ("ChargesTableName", "PaymentsTableName", "SharedTableName")

#: Where to look for what a stack has left: service, operation, arguments, the list in the answer, and the name in its entries.
LISTINGS: Final[tuple[tuple[str, str, dict[str, str], str, str | None], ...]] = (
    ("apigatewayv2", "get_apis", {}, "Items", "Name"),
    ("cloudwatch", "describe_alarms", {}, "MetricAlarms", "AlarmName"),
    ("cloudwatch", "list_dashboards", {}, "DashboardEntries", "DashboardName"),
    ("dynamodb", "list_tables", {}, "TableNames", None),
    ("iam", "list_policies", {"Scope": "Local"}, "Policies", "PolicyName"),
    ("iam", "list_roles", {}, "Roles", "RoleName"),
    ("lambda", "list_event_source_mappings", {}, "EventSourceMappings", "FunctionArn"),
    ("lambda", "list_functions", {}, "Functions", "FunctionName"),
    ("logs", "describe_log_groups", {}, "logGroups", "logGroupName"),
    ("sqs", "list_queues", {}, "QueueUrls", None),
)


class Deployed(Stack):
    """A stack, by its name.  `AWS_ENDPOINT_URL` must be the emulator's, as `sample.smoke` expects."""

    def __init__(self, emulator: Emulator, name: str) -> None:
        super().__init__(name, emulator.address)
        self._emulator = emulator

    @property
    def resources(self) -> dict[str, str]:
        """The physical ids by the logical ones."""
        with closing(self._emulator.client("cloudformation")) as cloudformation:
            pages = cloudformation.get_paginator("list_stack_resources").paginate(StackName=self._name)
            summaries = [summary for page in pages for summary in page["StackResourceSummaries"]]
        return {summary["LogicalResourceId"]: summary["PhysicalResourceId"] for summary in summaries}

    @property
    def table_ids(self) -> list[str]:
        """What a table that was made anew does not have again."""
        return [self.table(output)["TableId"] for output in TABLES]

    def table(self, output: str) -> Document:
        """The description of the table in that output."""
        with closing(self._emulator.client("dynamodb")) as dynamodb:
            description: Document = dynamodb.describe_table(TableName=self.outputs[output])["Table"]
            return description

    def is_backed_up(self, output: str) -> bool:
        """Whether the table in that output can be restored to any point in time."""
        with closing(self._emulator.client("dynamodb")) as dynamodb:
            backups = dynamodb.describe_continuous_backups(TableName=self.outputs[output])["ContinuousBackupsDescription"]
        return bool(backups["PointInTimeRecoveryDescription"]["PointInTimeRecoveryStatus"] == "ENABLED")

    def items(self, output: str) -> list[Document]:
        """Everything in the table in that output."""
        with closing(self._emulator.client("dynamodb")) as dynamodb:
            items: list[Document] = dynamodb.scan(TableName=self.outputs[output], ConsistentRead=True)["Items"]
            return items

    def function(self, name: str) -> Document:
        """The configuration of the function of that name."""
        with closing(self._emulator.client("lambda")) as functions:
            configuration: Document = functions.get_function_configuration(FunctionName=self.outputs[f"{name}FunctionArn"])
            return configuration

    def log(self, name: str) -> list[str]:
        """The lines in the log of the function of that name."""
        with closing(self._emulator.client("logs")) as logs:
            pages = logs.get_paginator("filter_log_events").paginate(logGroupName=self.resources[f"{name}Logs"])
            return [event["message"] for page in pages for event in page["events"]]

    def published(self, name: str) -> list[tuple[str, str, Document]]:
        """Namespace, name and dimensions of the metrics in the log, in CloudWatch's embedded format, as CloudWatch reads it."""
        lines = [json.loads(line) for line in self.log(name) if line.startswith('{"_aws"')]
        return [
            (directive["Namespace"], metric["Name"], {dimension: line[dimension] for dimension in dimensions})
            for line in lines
            for directive in line["_aws"]["CloudWatchMetrics"]
            for metric in directive["Metrics"]
            for dimensions in directive["Dimensions"]
        ]

    def watched(self, alarm: str) -> tuple[str, str, Document]:
        """The same of the metric that the alarm watches."""
        with closing(self._emulator.client("cloudwatch")) as cloudwatch:
            (found,) = cloudwatch.describe_alarms(AlarmNames=[self.resources[alarm]])["MetricAlarms"]
        return found["Namespace"], found["MetricName"], {each["Name"]: each["Value"] for each in found["Dimensions"]}

    @contextmanager
    def as_role(self, role: str) -> Iterator[Any]:
        """A client of DynamoDB with what the role is allowed, which may be assumed by the account afterwards."""
        trust = {"Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::000000000000:root"}, "Action": "sts:AssumeRole"}
        name = self.resources[role]
        with closing(self._emulator.client("iam")) as iam, closing(self._emulator.client("sts")) as sts:
            arn = iam.get_role(RoleName=name)["Role"]["Arn"]
            document = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
            iam.update_assume_role_policy(RoleName=name, PolicyDocument=document)
            credentials = sts.assume_role(RoleArn=arn, RoleSessionName="test")["Credentials"]
        with closing(self._emulator.client("dynamodb", credentials)) as client:
            yield client

    @contextmanager
    def quicker(self, *, visibility_seconds: int, timeout_seconds: int | None = None) -> Iterator[None]:
        """With a shorter visibility timeout of the queue and, if it is given, a shorter timeout of its function."""
        url, name = self.outputs["OrdersQueueUrl"], self.outputs["OrdersFunctionArn"]
        with closing(self._emulator.client("sqs")) as sqs, closing(self._emulator.client("lambda")) as functions:
            visibility = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["VisibilityTimeout"])["Attributes"]
            timeout = self.function("Orders")["Timeout"]
            sqs.set_queue_attributes(QueueUrl=url, Attributes={"VisibilityTimeout": str(visibility_seconds)})
            if timeout_seconds is not None:
                functions.update_function_configuration(FunctionName=name, Timeout=timeout_seconds)
            try:
                yield
            finally:
                if timeout_seconds is not None:
                    functions.update_function_configuration(FunctionName=name, Timeout=timeout)
                sqs.set_queue_attributes(QueueUrl=url, Attributes=visibility)


def left_of(emulator: Emulator, stack_name: str) -> set[str]:
    """Everything whose name begins with the stack's."""
    found = set()
    for service, operation, arguments, listed, name in LISTINGS:
        with closing(emulator.client(service)) as client:
            entries = getattr(client, operation)(**arguments).get(listed, [])
        for entry in entries:
            text = str(entry[name] if name else entry)
            if f"{stack_name}-" in text or f"/{stack_name}/" in text:
                found.add(text)
    return found
