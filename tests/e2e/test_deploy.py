"""The template, deployed by the real `sam` to an emulator that enforces IAM, and templates with mistakes that must show.

What the emulator cannot show: docs/deploy.md.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError
from engines import EngineUnavailableError
from engines.plugin import refuse
from engines.repository import ROOT
from stack import sam
from stack.deployed import TABLES, Deployed, left_of

from sample.report import Report
from sample.smoke import Smoke, in_words, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from stack.emulator import Emulator

    Document = dict[str, Any]
    Mutation = Callable[[Document], None]
    Deploy = Callable[..., Deployed]

#: The first test waits for the build and a deployment, too.
pytestmark = pytest.mark.timeout(300)

#: What sample.smoke says that its user needs.
SMOKE_ACTIONS = (
    "cloudformation:DescribeStacks",
    "cloudformation:ListStackResources",
    "cloudwatch:DescribeAlarms",
    "dynamodb:DescribeTimeToLive",
    "dynamodb:Scan",
    "execute-api:Invoke",
    "sqs:GetQueueAttributes",
    "sqs:SendMessage",
)
#: What the stack looks like when nothing has its default.
OPTIONS = {
    "ContributorInsights": "true",
    "DeletionProtection": "false",
    "LogRetentionDays": "1",
    "Network": "gateway",
    "RestrictAttributes": "true",
    "Tracing": "true",
}


@pytest.fixture(scope="module")
def packaged(emulator: Emulator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template, its functions built and uploaded."""
    folder = tmp_path_factory.mktemp("sam")
    try:
        built = sam.build(ROOT / "template.yaml", folder / "build")
    except EngineUnavailableError as error:
        refuse("sam", error)
    return sam.package(emulator, built, folder)


@pytest.fixture(scope="module")
def deploy(emulator: Emulator, packaged: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deploy]:
    """Deploys the template, changed by mutations, as a stack of that name, or updates that stack."""

    def deployed(name: str, *mutations: Mutation, **parameters: str) -> Deployed:
        template = json.loads(packaged.read_text(encoding="utf-8"))
        for mutate in mutations:
            mutate(template)
        path = tmp_path_factory.mktemp(name) / "template.json"
        path.write_text(json.dumps(template), encoding="utf-8")
        sam.deploy(emulator, path, name, **parameters)
        return Deployed(emulator, name)

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", emulator.endpoint)
        yield deployed


@pytest.fixture(scope="module")
def payments(deploy: Deploy) -> Deployed:
    """The stack as it is; every test takes orders of its own."""
    return deploy("payments")


@pytest.fixture(scope="module")
def careless(deploy: Deploy) -> Deployed:
    """A stack with a mistake in each role, and in each table of records."""
    return deploy("careless", without_update_item, with_another_partition, with_a_denial, with_other_ttl_attributes)


# The stack as it is


def test_the_stack_keeps_every_promise_of_the_smoke_test(emulator: Emulator, payments: Deployed) -> None:
    """Told by a user who may do what the module says that is needed, and nothing else."""
    user = emulator.user("smoke", *SMOKE_ACTIONS)
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": user["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": user["SecretAccessKey"]}
    command = [sys.executable, "-W", "error", "-m", "sample.smoke", "--stack", "payments", "--connect", emulator.address]

    told = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=240)

    assert told.returncode == 0, told.stdout + told.stderr
    assert told.stderr == ""
    assert "WRONG" not in told.stdout
    assert payments.messages() == 0


def test_a_caller_without_a_signature_is_refused(payments: Deployed) -> None:
    answer = payments.post("PaymentsUrl", payment("unsigned"), signed=False)

    assert answer.status == 403
    assert payments.charges("unsigned") == []


def test_a_caller_who_may_not_invoke_the_api_is_refused(
    emulator: Emulator, payments: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = emulator.user("stranger", "cloudformation:DescribeStacks")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", user["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", user["SecretAccessKey"])

    answer = Deployed(emulator, "payments").post("PaymentsUrl", payment("stranger's"))

    assert answer.status == 403
    assert payments.charges("stranger's") == []


@pytest.mark.parametrize("output", TABLES)
def test_a_table_is_encrypted_backed_up_and_protected_from_deletion(payments: Deployed, output: str) -> None:
    table = payments.table(output)

    assert table["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
    assert table["SSEDescription"]["SSEType"] == "KMS"
    assert table["DeletionProtectionEnabled"] is True
    assert payments.is_backed_up(output)


@pytest.mark.parametrize(("role", "own", "other"), [("OrdersRole", "orders", "bills"), ("BillsRole", "bills", "orders")])
def test_a_function_reaches_its_own_partition_of_the_shared_table_and_no_other(
    payments: Deployed, role: str, own: str, other: str
) -> None:
    table = payments.outputs["SharedTableName"]
    with payments.as_role(role) as client:
        client.put_item(TableName=table, Item=key(own))
        client.get_item(TableName=table, Key=key(own))
        client.delete_item(TableName=table, Key=key(own))

        assert is_denied(client.get_item, TableName=table, Key=key(other))
        assert is_denied(client.put_item, TableName=table, Item=key(other))
        assert is_denied(client.delete_item, TableName=table, Key=key(other))
        assert is_denied(client.batch_get_item, RequestItems={table: {"Keys": [key(own)]}})
        assert is_denied(client.scan, TableName=table)


def test_the_function_of_payments_reaches_single_items_of_its_own_table_alone(payments: Deployed) -> None:
    records, shared, charges = (payments.outputs[f"{name}TableName"] for name in ("Payments", "Shared", "Charges"))
    item = {"id": {"S": "probe"}}
    with payments.as_role("PaymentsRole") as client:
        client.get_item(TableName=records, Key=item)

        assert is_denied(client.scan, TableName=records)
        assert is_denied(client.delete_table, TableName=records)
        assert is_denied(client.get_item, TableName=shared, Key=key("orders"))
        assert is_denied(client.put_item, TableName=shared, Item=key("orders"))
        assert is_denied(client.get_item, TableName=charges, Key=item)
        assert is_denied(client.put_item, TableName=charges, Item=item)


def test_an_order_that_always_fails_becomes_a_dead_letter_and_keeps_no_other_from_being_charged(payments: Deployed) -> None:
    with payments.quicker(visibility_seconds=1):
        payments.send_orders([order("declined-poison"), order("beside-the-poison")])

        assert until(lambda: payments.dead_letter("declined-poison"))
        assert until(payments.messages, is_enough=is_zero) == 0

    assert payments.charges("declined-poison") == []
    assert in_words(payments.charges("beside-the-poison")) == "1, from 1 requests"


def test_a_batch_whose_invocation_is_killed_is_delivered_again_and_charges_nothing_twice(payments: Deployed) -> None:
    """The provider has charged the second order when the invocation dies.  The first is completed, the third was not reached."""
    with payments.quicker(visibility_seconds=5, timeout_seconds=3):
        payments.send_orders([order("killed-1"), order("slow-killed-2"), order("killed-3")])

        assert until(lambda: payments.charges("killed-3"))
        assert until(payments.messages, is_enough=is_zero) == 0

    assert in_words(payments.charges("killed-1")) == "1, from 1 requests"
    assert in_words(payments.charges("slow-killed-2")) == "1, from 2 requests"
    assert in_words(payments.charges("killed-3")) == "1, from 1 requests"
    assert payments.watched("Takeovers") in payments.published("Orders")


def test_an_update_replaces_nothing_and_what_was_paid_stays_paid(payments: Deployed, deploy: Deploy) -> None:
    first = payments.post("PaymentsUrl", payment("updated"))
    before = payments.resources, payments.table_ids

    updated = deploy("payments", MemoryMB="1024")

    again = updated.post("PaymentsUrl", payment("updated"))
    assert (first.status, first.is_replay) == (201, False)
    assert (again.status, again.is_replay, again.body) == (201, True, first.body)
    assert (updated.resources, updated.table_ids) == before
    assert updated.function("Payments")["MemorySize"] == 1024


def test_with_every_option_on_the_stack_does_its_work(deploy: Deploy) -> None:
    stack = deploy("options", **OPTIONS)

    told = tell(stack, Smoke.deployed, Smoke.first_call, Smoke.duplicate, Smoke.refused, Smoke.queue, Smoke.bill)

    assert "WRONG" not in told, told
    assert stack.function("Payments")["TracingConfig"]["Mode"] == "Active"
    assert stack.table("SharedTableName")["DeletionProtectionEnabled"] is False


def test_deleting_the_stack_leaves_the_tables_with_what_is_in_them_and_nothing_else(
    emulator: Emulator, deploy: Deploy, tmp_path: Path
) -> None:
    stack = deploy("deleted", with_artifacts_of_its_own(emulator))
    assert stack.post("PaymentsUrl", payment("kept")).status == 201

    sam.delete(emulator, "deleted", tmp_path)

    assert left_of(emulator, "deleted") == {stack.outputs[output] for output in TABLES}
    assert [record["status"]["S"] for record in stack.items("PaymentsTableName")] == ["COMPLETED"]
    assert in_words(stack.charges("kept")) == "1, from 1 requests"


# Templates with mistakes


def test_without_update_item_no_payment_is_completed(careless: Deployed) -> None:
    told = tell(careless, Smoke.first_call)

    assert "expected (201, False), found (5" in told
    assert "is not authorized to perform: dynamodb:UpdateItem" in "".join(careless.log("Payments"))


def test_with_another_partition_value_in_the_role_no_order_is_charged(careless: Deployed) -> None:
    careless.send_orders([order("wrong-partition")])

    assert until(lambda: "is not authorized to perform: dynamodb:PutItem" in "".join(careless.log("Orders")))
    assert careless.charges("wrong-partition") == []
    assert careless.messages() == 1


def test_a_denial_outweighs_what_the_role_allows(careless: Deployed) -> None:
    told = tell(careless, Smoke.bill)

    assert "expected 201, found 5" in told
    assert "expected 1, from 1 requests, found 0, from 0 requests" in told
    assert "explicit deny" in "".join(careless.log("Bills"))


def test_a_table_that_expires_by_another_attribute_or_not_at_all_is_found(careless: Deployed) -> None:
    told = tell(careless, Smoke.deployed)

    assert "expected expiration, found in_progress_expiration" in told
    assert "expected expiration, found DISABLED" in told


def test_an_attribute_that_is_missing_from_the_list_stops_a_restricted_role(deploy: Deploy) -> None:
    stack = deploy("restricted", without_the_owner_token, RestrictAttributes="true")

    told = tell(stack, Smoke.first_call)

    assert "expected (201, False), found (5" in told
    assert "expected 1, from 1 requests, found 0, from 0 requests" in told
    assert "is not authorized to perform: dynamodb:PutItem" in "".join(stack.log("Payments"))


def test_a_function_whose_role_may_not_take_messages_is_not_deployed(deploy: Deploy) -> None:
    with pytest.raises(sam.SamError, match="ROLLBACK_COMPLETE") as refused:
        deploy("deaf", without_receive_message)

    assert "sqs:ReceiveMessage" in str(refused.value)


def with_artifacts_of_its_own(emulator: Emulator) -> Mutation:
    """`sam delete` deletes a stack's artifacts, too, and the other stacks need theirs."""

    def mutate(template: Document) -> None:
        with closing(emulator.client("s3")) as s3:
            for name in ("PaymentsFunction", "OrdersFunction", "BillsFunction"):
                properties = template["Resources"][name]["Properties"]
                bucket, _, artifact = properties["CodeUri"].removeprefix("s3://").partition("/")
                s3.copy_object(Bucket=bucket, Key=f"own/{name}", CopySource={"Bucket": bucket, "Key": artifact})
                properties["CodeUri"] = f"s3://{bucket}/own/{name}"

    return mutate


def statement(template: Document, role: str, sid: str) -> Document:
    """The one statement of that name in the role's own policies."""
    policies = template["Resources"][role]["Properties"]["Policies"]
    (found,) = [each for policy in policies for each in policy["PolicyDocument"]["Statement"] if each["Sid"] == sid]
    result: Document = found
    return result


def without_update_item(template: Document) -> None:
    statement(template, "PaymentsRole", "RecordsOfThisTable")["Action"].remove("dynamodb:UpdateItem")


def with_another_partition(template: Document) -> None:
    keys = statement(template, "OrdersRole", "RecordsOfThisPartition")["Condition"]["ForAllValues:StringEquals"]
    assert keys["dynamodb:LeadingKeys"] == ["orders"]
    keys["dynamodb:LeadingKeys"] = ["order"]


def with_a_denial(template: Document) -> None:
    allowed = statement(template, "BillsRole", "RecordsOfThisPartition")
    denial = {"Sid": "Denial", "Effect": "Deny", "Action": "dynamodb:PutItem", "Resource": allowed["Resource"]}
    template["Resources"]["BillsRole"]["Properties"]["Policies"][0]["PolicyDocument"]["Statement"].append(denial)


def with_other_ttl_attributes(template: Document) -> None:
    payments, shared = (template["Resources"][table]["Properties"] for table in ("PaymentsTable", "SharedTable"))
    assert payments["TimeToLiveSpecification"]
    payments["TimeToLiveSpecification"] = {"AttributeName": "in_progress_expiration", "Enabled": True}
    del shared["TimeToLiveSpecification"]


def without_receive_message(template: Document) -> None:
    statement(template, "OrdersRole", "TakeMessages")["Action"].remove("sqs:ReceiveMessage")


def without_the_owner_token(template: Document) -> None:
    template["Mappings"]["Record"]["Attributes"]["Names"].remove("owner_token")


# What is asked of a stack


def payment(order_id: str) -> Document:
    return {"customer_id": "c-7", "order_id": order_id, "amount": 4_200, "currency": "EUR"}


def order(order_id: str) -> Document:
    return {"order_id": order_id, "amount": 1_500}


def key(partition: str) -> Document:
    return {"id": {"S": partition}, "sort": {"S": "probe"}}


def is_denied(call: Callable[..., object], **arguments: object) -> bool:
    """Whether IAM, and nothing else, refuses the call."""
    try:
        call(**arguments)
    except ClientError as error:
        return bool(error.response["Error"]["Code"] == "AccessDeniedException")
    return False


def tell(stack: Deployed, *steps: Callable[[Smoke], None]) -> str:
    """Some steps of the smoke test, and what they say."""
    report = Report(out := io.StringIO())
    smoke = Smoke(stack, report, "told")
    for step in steps:
        with report.step(step.__name__):
            step(smoke)
    return out.getvalue()


def is_zero(number: int) -> bool:
    return number == 0
