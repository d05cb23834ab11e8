"""template.yaml before it is deployed, compared with what the handlers need, for each choice of parameters.

Each check returns its objections to a stack.  The template has none; each mutant has the one that it is there for.
"""

from __future__ import annotations

import ast
import io
import json
import re
import sys
from contextlib import closing, contextmanager, redirect_stdout, suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import pytest
from doubles import FakeClock, incompressible
from engines import EngineUnavailableError
from engines.plugin import refuse
from engines.repository import ROOT
from engines.tables import create_table, shared_client
from stack import sam
from stack.template import (
    PSEUDO_PARAMETERS,
    TEMPLATE,
    Right,
    Stack,
    Template,
    frozen,
    is_allowed,
    lint,
    load,
    refusals,
    resolve,
    statements_of,
    translated,
)

from idempotency.events import LeaseLost, Replayed, ReplicationConflict, ResultNotKept, TakenOver
from sample.invocation import Invocation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

Objections: TypeAlias = list[str]
#: Namespace, name, and dimensions with their values.
Metric: TypeAlias = tuple[str, str, tuple[tuple[str, str], ...]]

KEY_ARN: Final = "arn:aws:kms:eu-west-1:123456789012:key/k"
REPLICA_KEY_ARN: Final = "arn:aws:kms:eu-central-1:123456789012:key/r"
TOPIC_ARN: Final = "arn:aws:sns:eu-west-1:123456789012:t"
EVENTUAL: Final = {"Replication": "eventual", "ReplicaRegion": "eu-central-1"}
STRONG: Final = {**EVENTUAL, "Replication": "strong", "WitnessRegion": "eu-west-3"}
KEYS: Final = {"KmsKeyArn": KEY_ARN, "ReplicaKmsKeyArn": REPLICA_KEY_ARN}

#: Every choice that changes resources.
CHOICES: Final[dict[str, dict[str, str]]] = {
    "as it is": {},
    "gateway": {"Network": "gateway"},
    "interface": {"Network": "interface"},
    "eventual": EVENTUAL,
    "strong": STRONG,
    "own key": {"KmsKeyArn": KEY_ARN},
    "restricted": {"RestrictAttributes": "true"},
    "traced": {"Tracing": "true"},
    "alarmed": {"AlarmTopicArn": TOPIC_ARN},
    "unprotected": {"DeletionProtection": "false", "ContributorInsights": "true"},
    "all": {
        **EVENTUAL,
        **KEYS,
        "Network": "gateway",
        "RestrictAttributes": "true",
        "Tracing": "true",
        "AlarmTopicArn": TOPIC_ARN,
        "ContributorInsights": "true",
    },
    "all, strong": {**STRONG, **KEYS, "Network": "interface", "RestrictAttributes": "true", "Tracing": "true"},
}


# ---- What is checked against: the sample as it is ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Function:
    """What is known of a function without its template."""

    role: str
    log_group: str
    module: str
    table: str
    is_shared: bool
    #: The module's name for the code that charges, and an event for an order of that name.
    event: Callable[[str, int], dict[str, Any]]


def _request(**body: Any) -> dict[str, Any]:
    return {"body": json.dumps(body)}


def _batch(order_id: str, amount: int) -> dict[str, Any]:
    body = json.dumps({"order_id": order_id, "amount": amount})
    return {"Records": [{"messageId": order_id, "body": body, "eventSource": "aws:sqs"}]}


FUNCTIONS: Final = {
    "PaymentsFunction": Function(
        "PaymentsRole",
        "PaymentsLogs",
        "payments",
        "PaymentsTable",
        is_shared=False,
        event=lambda order_id, amount: _request(customer_id="c", order_id=order_id, amount=amount, currency="EUR"),
    ),
    "OrdersFunction": Function("OrdersRole", "OrdersLogs", "orders", "SharedTable", is_shared=True, event=_batch),
    "BillsFunction": Function(
        "BillsRole",
        "BillsLogs",
        "fanout",
        "SharedTable",
        is_shared=True,
        event=lambda order_id, amount: _request(bill_id=order_id, shares={"g": amount}),
    ),
}
MODULES: Final = ("payments", "orders", "fanout", "provider", "metrics")
SERVICE: Final = PSEUDO_PARAMETERS["AWS::StackName"]


@dataclass(frozen=True)
class Facts:
    """What the sample's modules say of themselves."""

    #: By function.
    partitions: dict[str, str]
    key_attributes: dict[str, list[str]]
    expiry_attributes: dict[str, str]
    attributes: frozenset[str]
    slow_seconds: int
    expires_after_seconds: int
    metrics: frozenset[Metric]


@contextmanager
def sample_with(environment: Mapping[str, str]) -> Iterator[SimpleNamespace]:
    """The deployed modules, imported anew in this environment; those of other tests are put back afterwards."""
    names = [f"sample.{module}" for module in MODULES]
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        modules = SimpleNamespace(**{module: import_module(f"sample.{module}") for module in MODULES})
        try:
            yield modules
        finally:
            modules.provider.client.close()
            for name in names:
                del sys.modules[name]
            sys.modules.update(before)


def environment_of(stack: Stack, *functions: str) -> dict[str, str]:
    """The variables that the template sets."""
    variables: dict[str, str] = {}
    for function in functions or FUNCTIONS:
        variables |= stack.properties(function)["Environment"]["Variables"]
    return variables


@pytest.fixture(scope="module")
def facts(stack: Callable[..., Stack]) -> Facts:
    with sample_with(environment_of(stack("as it is"))) as sample:
        stores = {name: getattr(sample, function.module).store for name, function in FUNCTIONS.items()}
        items = {name: store._items for name, store in stores.items()}
        return Facts(
            partitions={name: item.static_pk_value for name, item in items.items()},
            key_attributes={name: [key for key in (item.key_attr, item.sort_key_attr) if key] for name, item in items.items()},
            expiry_attributes={name: item.expiry_attr for name, item in items.items()},
            attributes=frozenset().union(*(item.attributes for item in items.values())),
            slow_seconds=sample.provider.SLOW_SECONDS,
            expires_after_seconds=sample.orders.config.expires_after_seconds,
            metrics=frozenset(written_by(sample.metrics)),
        )


def written_by(metrics: Any) -> set[Metric]:
    """The metrics that CloudWatch reads from the log of a function that has met all events."""
    events = [
        LeaseLost(key="k", at_ms=0, generation=1, winner_holder="h"),
        Replayed(key="k", at_ms=0, source="store", holder="h"),
        ReplicationConflict(key="k", at_ms=0, region="r", winner_region="w"),
        ResultNotKept(key="k", at_ms=0, generation=1, reason="too large"),
        TakenOver(key="k", at_ms=0, generation=2),
    ]
    assert {type(event) for event in events} == set(metrics.COUNTED)
    with redirect_stdout(log := io.StringIO()):
        for event in events:
            metrics.count(event)
    written = set()
    for line in map(json.loads, log.getvalue().splitlines()):
        (directive,) = line["_aws"]["CloudWatchMetrics"]
        (names,) = directive["Dimensions"]
        dimensions = tuple(sorted((name, line[name]) for name in names))
        written |= {(directive["Namespace"], metric["Name"], dimensions) for metric in directive["Metrics"]}
    assert len(written) == len(events)
    return written


# ---- Rights --------------------------------------------------------------------------------------------------------------------

ON_RECORDS: Final = ("dynamodb:GetItem", "dynamodb:PutItem", "dynamodb:UpdateItem", "dynamodb:DeleteItem")
SPANNING: Final = (
    *("dynamodb:Scan", "dynamodb:Query", "dynamodb:BatchGetItem", "dynamodb:BatchWriteItem"),
    *("dynamodb:PartiQLSelect", "dynamodb:PartiQLInsert", "dynamodb:PartiQLUpdate", "dynamodb:PartiQLDelete"),
)
ON_MESSAGES: Final = ("sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes")
#: These actions know no resources.  https://docs.aws.amazon.com/service-authorization/latest/reference/list_awsx-ray.html
ON_TRACES: Final = ("xray:PutTraceSegments", "xray:PutTelemetryRecords")
#: Lambda asks for these on all resources; a Deny keeps them from the function's code.
#: https://docs.aws.amazon.com/lambda/latest/dg/configuration-vpc.html#configuration-vpc-permissions
ON_INTERFACES: Final = (
    *("ec2:CreateNetworkInterface", "ec2:DeleteNetworkInterface", "ec2:DescribeNetworkInterfaces", "ec2:DescribeSubnets"),
    *("ec2:AssignPrivateIpAddresses", "ec2:UnassignPrivateIpAddresses"),
)
#: Present in the calls of a function's code, absent in those that Lambda makes to EC2.
#: https://docs.aws.amazon.com/lambda/latest/dg/permissions-source-function-arn.html
BY_ITS_CODE: Final = {"Null": {"lambda:SourceFunctionArn": "false"}}
#: By DynamoDB, in the name of its caller: it decrypts the table's key.  The grants are the deployer's.
#: https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/encryption.usagenotes.html#dynamodb-kms-authz
ON_KEYS: Final = ("kms:Decrypt", "kms:DescribeKey")
THROUGH_DYNAMODB: Final = {"StringEquals": {"kms:ViaService": "dynamodb.eu-west-1.amazonaws.com"}}


def rights_of(stack: Stack, name: str, facts: Facts) -> set[Right]:
    """What the function needs."""
    function = FUNCTIONS[name]
    condition: dict[str, dict[str, Any]] = {}
    if function.is_shared:
        condition = {
            "ForAllValues:StringEquals": {"dynamodb:LeadingKeys": [facts.partitions[name]]},
            "Null": {"dynamodb:LeadingKeys": "false"},
        }
    if stack.parameters["RestrictAttributes"] == "true":
        condition.setdefault("ForAllValues:StringEquals", {})["dynamodb:Attributes"] = sorted(facts.attributes)
    needed = [
        ("Allow", ON_RECORDS, f"${{{function.table}.Arn}}", condition),
        ("Allow", ("dynamodb:UpdateItem",), "${ChargesTable.Arn}", {}),
        ("Allow", ("logs:CreateLogStream", "logs:PutLogEvents"), f"${{{function.log_group}.Arn}}", {}),
    ]
    if function.is_shared:
        needed += [("Deny", SPANNING, f"${{{function.table}.Arn}}", {})]
    if name == "OrdersFunction":
        needed += [("Allow", ON_MESSAGES, "${OrdersQueue.Arn}", {})]
    if stack.parameters["Tracing"] == "true":
        needed += [("Allow", ON_TRACES, "*", {})]
    if stack.parameters["Network"] != "none":
        needed += [("Allow", ON_INTERFACES, "*", {}), ("Deny", (*ON_INTERFACES, "ec2:DetachNetworkInterface"), "*", BY_ITS_CODE)]
    if stack.parameters["KmsKeyArn"]:
        needed += [("Allow", ON_KEYS, stack.parameters["KmsKeyArn"], THROUGH_DYNAMODB)]
    return {(effect, action, resource, frozen(wanted)) for effect, actions, resource, wanted in needed for action in actions}


def to_rights(stack: Stack, facts: Facts) -> Objections:
    """Each role has exactly what its function needs."""
    objections = []
    for name, function in FUNCTIONS.items():
        granted = {right for statement in stack.statements[function.role] for right in statement.rights}
        needed = rights_of(stack, name, facts)
        objections += [f"{function.role} lacks {' '.join(right)}" for right in sorted(needed - granted)]
        objections += [f"{function.role} does not need {' '.join(right)}" for right in sorted(granted - needed)]
    return objections


def to_roles(stack: Stack, facts: Facts) -> Objections:
    """Each function has a role of its own, complete before the function is made, that Lambda alone can take."""
    objections = []
    roles = stack.of_type("AWS::IAM::Role")
    if set(roles) != {function.role for function in FUNCTIONS.values()}:
        objections.append(f"the roles are {sorted(roles)}")
    for name, function in FUNCTIONS.items():
        if stack.named(stack.properties(name)["Role"]) != function.role:
            objections.append(f"{name} does not have {function.role}")
    for name, role in roles.items():
        trusted = [(each.effect, each.actions, each.principal) for each in statements_of(role["AssumeRolePolicyDocument"])]
        if trusted != [("Allow", ("sts:AssumeRole",), {"Service": "lambda.amazonaws.com"})]:
            objections.append(f"{name} trusts {trusted}")
        attached = role.get("ManagedPolicyArns", [])
        own = stack.of_type("AWS::IAM::ManagedPolicy")
        objections += [
            f"{name} has the policy {policy}, which is not the stack's" for policy in attached if stack.named(policy) not in own
        ]
        if len(attached) > 10:  # https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html
            objections.append(f"{name} has more managed policies than an account is given")
    for name, resource in stack.resources.items():
        if resource["Type"] in ("AWS::IAM::Policy", "AWS::IAM::RolePolicy") or stack.properties(name).get("Roles"):
            objections.append(f"{name} is attached to a role whose function may have started without it")
    return objections


def to_the_endpoint(stack: Stack, facts: Facts) -> Objections:
    """What the functions may do with tables passes the endpoint, each for its own role, and nothing else does."""
    endpoints = stack.of_type("AWS::EC2::VPCEndpoint")
    if bool(endpoints) != (stack.parameters["Network"] != "none") or len(endpoints) > 1:
        return [f"Network={stack.parameters['Network']} has the endpoints {sorted(endpoints)}"]
    objections = []
    passed = set()
    for endpoint in endpoints.values():
        for statement in statements_of(endpoint["PolicyDocument"]):
            condition = deepcopy(statement.condition)
            roles = condition.pop("ArnEquals", {}).get("aws:PrincipalArn", "anybody")
            # A gateway endpoint knows "*" alone: https://docs.aws.amazon.com/vpc/latest/privatelink/vpc-endpoints-access.html
            if statement.principal != "*":
                objections.append(f"a gateway endpoint refuses the principal {statement.principal}")
            for role in roles if isinstance(roles, list) else [roles]:
                passed |= {(role, statement.effect, action, *rest) for _, action, *rest in _with(statement.rights, condition)}
    granted = {
        (f"${{{role}.Arn}}", effect, action, resource, _without_attributes(condition))
        for role, statements in stack.statements.items()
        for statement in statements
        for effect, action, resource, condition in statement.rights
        if effect == "Allow" and action.startswith("dynamodb:") and endpoints
    }
    objections += [f"the endpoint stops {' '.join(right)}" for right in sorted(granted - passed)]
    objections += [f"the endpoint passes {' '.join(right)}" for right in sorted(passed - granted)]
    return objections


def _with(rights: set[Right], condition: dict[str, Any]) -> set[Right]:
    return {(effect, action, resource, frozen(condition)) for effect, action, resource, _ in rights}


def _without_attributes(condition: str) -> str:
    """The endpoint leaves `RestrictAttributes` to the roles: who may pass is decided by both."""
    plain = json.loads(condition or "{}")
    plain.get("ForAllValues:StringEquals", {}).pop("dynamodb:Attributes", None)
    return frozen({operator: keys for operator, keys in plain.items() if keys})


# ---- Tables --------------------------------------------------------------------------------------------------------------------

TABLES: Final = ("AWS::DynamoDB::Table", "AWS::DynamoDB::GlobalTable")


def to_tables(stack: Stack, facts: Facts) -> Objections:
    """Tables fit the stores, keep what they hold, and let go of what has expired."""
    objections = []
    tables = stack.of_type(*TABLES)
    for name, table in tables.items():
        problems = {
            "can be deleted with the stack": stack.resources[name].get("DeletionPolicy") != "Retain",
            "can be deleted by an update": stack.resources[name].get("UpdateReplacePolicy") != "Retain",
            "is not on demand": table.get("BillingMode") != "PAY_PER_REQUEST",
            "is not encrypted by KMS": table.get("SSESpecification", {}).get("SSEType") != "KMS",
            "has a fixed name, and cannot be replaced": "TableName" in table,
        }
        for part in [table, *table.get("Replicas", ())] if "Replicas" not in table else table["Replicas"]:
            recovery = part.get("PointInTimeRecoverySpecification", {}).get("PointInTimeRecoveryEnabled")
            key = part.get("SSESpecification", {}).get("KMSMasterKeyId", "")
            own_key = "KmsKeyArn" if part.get("Region", "eu-west-1") == "eu-west-1" else "ReplicaKmsKeyArn"
            wanted_key = stack.parameters[own_key] if stack.parameters["KmsKeyArn"] else ""
            problems |= {
                f"has no recovery ({part.get('Region', 'here')})": recovery is not True,
                f"is not protected as wished ({part.get('Region', 'here')})": (
                    part.get("DeletionProtectionEnabled") != stack.parameters["DeletionProtection"]
                ),
                f"is not encrypted by its own key ({part.get('Region', 'here')})": key != wanted_key,
            }
        objections += [f"{name} {problem}" for problem, is_so in problems.items() if is_so]
    for name, function in FUNCTIONS.items():
        objections += [f"{function.table} {problem}" for problem in _misfits(stack, name, facts)]
    return objections


def _misfits(stack: Stack, name: str, facts: Facts) -> Iterator[str]:
    """How the table of records does not fit the function's store."""
    table = stack.properties(FUNCTIONS[name].table)
    schema = [(key["AttributeName"], key["KeyType"]) for key in table["KeySchema"]]
    wanted = list(zip(facts.key_attributes[name], ("HASH", "RANGE"), strict=False))
    if schema != wanted:
        yield f"has the keys {schema}, and its store {wanted}"
    expiry = table.get("TimeToLiveSpecification", {})
    # A strong global table cannot have TTL: https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/V2globaltables_HowItWorks.html
    if stack.parameters["Replication"] == "strong" and "Replicas" in table:
        if expiry:
            yield "has a TTL, which strong replication refuses"
    elif (expiry.get("AttributeName"), expiry.get("Enabled")) != (facts.expiry_attributes[name], True):
        yield f"does not expire by {facts.expiry_attributes[name]}"
    insights = [part.get("ContributorInsightsSpecification", {}).get("Enabled") for part in table.get("Replicas", [table])]
    if insights != [stack.parameters["ContributorInsights"]] * len(insights):
        yield "has contributor insights that nobody asked for, or has none"


def to_replicas(stack: Stack, facts: Facts) -> Objections:
    """The table of payments is where it is wished to be, of the kind that the store is told."""
    table, kind = stack.properties("PaymentsTable"), stack.parameters["Replication"]
    regions = [replica["Region"] for replica in table["Replicas"]]
    wanted = [PSEUDO_PARAMETERS["AWS::Region"]] + [stack.parameters["ReplicaRegion"]] * (kind != "none")
    witnesses = [witness["Region"] for witness in table.get("GlobalTableWitnesses", [])]
    told = environment_of(stack, "PaymentsFunction")["TABLE_REPLICATION"]
    problems = {
        f"the replicas are {regions}": regions != wanted,
        f"the witnesses are {witnesses}": witnesses != [stack.parameters["WitnessRegion"]] * (kind == "strong"),
        f"the store is told {told!r}": told != kind.replace("none", ""),
        "the consistency is another": table.get("MultiRegionConsistency", "none").lower() != kind,
        # Before there is a second replica: https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-dynamodb-globaltable.html
        "there is no stream to replicate from": kind != "strong" and "StreamSpecification" not in table,
    }
    return [problem for problem, is_so in problems.items() if is_so]


# ---- Functions, queues, logs, the API ------------------------------------------------------------------------------------------

#: https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-quotas.html
API_SECONDS: Final = 30
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html
DEFAULT_RETENTION_SECONDS: Final = 4 * 24 * 60 * 60
#: Set for Powertools and the SDK, whose code is not ours to read.
OF_LIBRARIES: Final = {"POWERTOOLS_SERVICE_NAME", "POWERTOOLS_METRICS_NAMESPACE", "AWS_ENDPOINT_URL_DYNAMODB"}


def to_functions(stack: Stack, facts: Facts) -> Objections:
    """Handlers exist, are told what they read, and nothing that they do not; they log to their own groups."""
    objections = []
    if set(stack.of_type("AWS::Lambda::Function")) != set(FUNCTIONS):
        objections.append(f"the functions are {sorted(stack.of_type('AWS::Lambda::Function'))}")
    for name, function in FUNCTIONS.items():
        properties = stack.properties(name)
        variables = set(environment_of(stack, name))
        read = variables_read_by(function.module)
        problems = {
            f"calls {properties['Handler']}": properties["Handler"] != f"sample.{function.module}.handler",
            f"is not told {sorted(read - variables)}": not read <= variables,
            f"is told {sorted(variables - read - OF_LIBRARIES)}, which it does not read": not variables <= read | OF_LIBRARIES,
            "does not log to its own group": properties["LoggingConfig"]["LogGroup"] != f"${{{function.log_group}}}",
            "is not for arm64": properties["Architectures"] != ["arm64"],
            "is traced, or not": (properties["TracingConfig"]["Mode"] == "Active") != (stack.parameters["Tracing"] == "true"),
        }
        objections += [f"{name} {problem}" for problem, is_so in problems.items() if is_so]
    return objections


def variables_read_by(module: str) -> set[str]:
    """The environment variables that a module of the sample reads, with the modules of the sample that it imports."""
    tree = ast.parse((ROOT / "sample" / f"{module}.py").read_text(encoding="utf-8"))
    read = set()
    for node in ast.walk(tree):
        match node:
            case ast.Subscript(value=ast.Attribute(attr="environ"), slice=ast.Constant(value=str(name))):
                read.add(name)
            case ast.Call(func=ast.Attribute(value=ast.Attribute(attr="environ")), args=[ast.Constant(value=str(name)), *_]):
                read.add(name)
            case ast.ImportFrom(module=str(imported)) if imported.startswith("sample."):
                read |= variables_read_by(imported.removeprefix("sample."))
    return read


def to_times(stack: Stack, facts: Facts) -> Objections:
    """Nobody gives up before whom it waits for, and no message outlives its record."""
    functions = {name: stack.properties(name)["Timeout"] for name in FUNCTIONS}
    queue, dead_letters = stack.properties("OrdersQueue"), stack.properties("OrdersDeadLetterQueue")
    (mapping,) = stack.of_type("AWS::Lambda::EventSourceMapping").values()
    retention = queue.get("MessageRetentionPeriod", DEFAULT_RETENTION_SECONDS)
    last_retention = dead_letters.get("MessageRetentionPeriod", DEFAULT_RETENTION_SECONDS)
    # https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-configure.html
    visibility = 6 * functions["OrdersFunction"] + mapping.get("MaximumBatchingWindowInSeconds", 0)
    behind_the_api = [
        functions[stack.named(permission["FunctionName"])] for permission in stack.of_type("AWS::Lambda::Permission").values()
    ]
    problems = {
        "a batch is delivered again while it is processed": queue["VisibilityTimeout"] < visibility,
        "a message is given up too early": queue["RedrivePolicy"]["maxReceiveCount"] < 5,
        "a batch of more than 10 needs a window": mapping["BatchSize"] > 10 and "MaximumBatchingWindowInSeconds" not in mapping,
        "the API does not wait for a function": max(behind_the_api) >= API_SECONDS,
        "a slow provider is not slow": facts.slow_seconds <= max(functions.values()),
        # The age counts from the first queue: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/setting-up-dead-letter-queue-retention.html
        "dead letters expire before letters": last_retention <= retention,
        # A redrive begins the message's time anew.
        "a message outlives its record": 2 * max(retention, last_retention) >= facts.expires_after_seconds,
    }
    return [problem for problem, is_so in problems.items() if is_so]


def to_queues(stack: Stack, facts: Facts) -> Objections:
    """Queues are encrypted; what fails goes to the dead letters; what fails in a batch is not the whole batch."""
    queues = stack.of_type("AWS::SQS::Queue")
    objections = [f"{name} is not encrypted" for name, queue in queues.items() if queue.get("SqsManagedSseEnabled") is not True]
    (mapping,) = stack.of_type("AWS::Lambda::EventSourceMapping").values()
    redrive = queues["OrdersQueue"].get("RedrivePolicy", {})
    problems = {
        "failures are not kept": redrive.get("deadLetterTargetArn") != "${OrdersDeadLetterQueue.Arn}",
        "the function reads another queue": mapping["EventSourceArn"] != "${OrdersQueue.Arn}",
        "another function reads the queue": mapping["FunctionName"] != "${OrdersFunction}",
        "a failure repeats its batch": mapping.get("FunctionResponseTypes") != ["ReportBatchItemFailures"],
        "its concurrency has no limit": "MaximumConcurrency" not in mapping.get("ScalingConfig", {}),
    }
    return objections + [problem for problem, is_so in problems.items() if is_so]


def to_logs(stack: Stack, facts: Facts) -> Objections:
    """Every log ends one day, and each has one writer."""
    groups = stack.of_type("AWS::Logs::LogGroup")
    wanted = stack.parameters["LogRetentionDays"]
    objections = [f"{name} is kept for ever" for name, group in groups.items() if group.get("RetentionInDays") != wanted]
    writers = [function.log_group for function in FUNCTIONS.values()] + ["ApiLogs"]
    return objections + ([f"the log groups are {sorted(groups)}"] if sorted(groups) != sorted(writers) else [])


def to_the_api(stack: Stack, facts: Facts) -> Objections:
    """Every route asks for a signature, and the API's routes alone may call the functions."""
    (api,) = stack.of_type("AWS::ApiGatewayV2::Api").values()
    (stage,) = stack.of_type("AWS::ApiGatewayV2::Stage").values()
    objections = []
    routes = {(verb, path): route for path, verbs in api["Body"]["paths"].items() for verb, route in verbs.items()}
    if set(routes) != {("post", "/payments"), ("post", "/bills")}:
        objections.append(f"the routes are {sorted(routes)}")
    schemes = api["Body"].get("components", {}).get("securitySchemes", {})
    for (verb, path), route in routes.items():
        asked = [schemes.get(name, {}).get("x-amazon-apigateway-authtype") for each in route.get("security", []) for name in each]
        if asked != ["awsSigv4"]:
            objections.append(f"{verb} {path} asks for no signature")
    for name, permission in stack.of_type("AWS::Lambda::Permission").items():
        source, region, account = (
            permission.get("SourceArn", ""),
            PSEUDO_PARAMETERS["AWS::Region"],
            PSEUDO_PARAMETERS["AWS::AccountId"],
        )
        if not re.fullmatch(rf"arn:aws:execute-api:{region}:{account}:\$\{{Api}}/\*/POST/(payments|bills)", source):
            objections.append(f"{name} lets {source or 'every API'} call")
    if not {"ThrottlingRateLimit", "ThrottlingBurstLimit"} <= stage.get("DefaultRouteSettings", {}).keys():
        objections.append("one client can use up the account's requests")
    log = stage.get("AccessLogSettings", {})
    if log.get("DestinationArn") != "${ApiLogs.Arn}" or "requestId" not in json.loads(log.get("Format", "{}")):
        objections.append("requests are not logged as JSON")
    return objections


def to_the_network(stack: Stack, facts: Facts) -> Objections:
    """In a VPC there is one way out of a function, to DynamoDB, and none in."""
    kind = stack.parameters["Network"]
    of_ec2 = {resource["Type"] for resource in stack.resources.values() if resource["Type"].startswith("AWS::EC2::")}
    functions = [stack.properties(name) for name in FUNCTIONS]
    if kind == "none":
        return [f"there is {found}" for found in sorted(of_ec2)] + [
            "a function is in a VPC" for each in functions if "VpcConfig" in each
        ]
    endpoint = stack.properties("DynamoDBEndpoint")
    security, subnets = ["${FunctionsSecurityGroup}"], ["${SubnetA}", "${SubnetB}"]
    group = stack.properties("FunctionsSecurityGroup")
    url = f"https://{'${DynamoDBEndpoint.DnsEntries[0].split(:)[1]}'}"
    known = {
        f"AWS::EC2::{kind}"
        for kind in ("VPC", "Subnet", "RouteTable", "SubnetRouteTableAssociation", "SecurityGroup", "VPCEndpoint")
    }
    problems = {
        f"there is {sorted(of_ec2 - known)}, too": not of_ec2 <= known,
        "a function is not in the subnets": any(
            each.get("VpcConfig") != {"SubnetIds": subnets, "SecurityGroupIds": security} for each in functions
        ),
        "somebody can call the functions": bool(group.get("SecurityGroupIngress")),
        "a function can call more than HTTPS": [(rule["FromPort"], rule["ToPort"]) for rule in group["SecurityGroupEgress"]]
        != [(443, 443)],
        "the endpoint is of another kind": endpoint["VpcEndpointType"].lower() != kind,
        "a function looks for the endpoint elsewhere": any(
            environment_of(stack, name).get("AWS_ENDPOINT_URL_DYNAMODB") != (url if kind == "interface" else None)
            for name in FUNCTIONS
        ),
    }
    if kind == "gateway":
        routed = {each["SubnetId"] for each in stack.of_type("AWS::EC2::SubnetRouteTableAssociation").values()}
        problems["a subnet has no route to it"] = endpoint.get("RouteTableIds") != ["${RouteTable}"] or routed != set(subnets)
    else:
        ingress = stack.properties("EndpointSecurityGroup")["SecurityGroupIngress"]
        callers = [(rule.get("SourceSecurityGroupId"), rule["FromPort"], rule["ToPort"]) for rule in ingress]
        problems["the endpoint is in another subnet"] = endpoint.get("SubnetIds") != subnets
        problems["others reach the endpoint"] = callers != [(security[0], 443, 443)]
    return [problem for problem, is_so in problems.items() if is_so]


# ---- Alarms, dashboard, outputs ------------------------------------------------------------------------------------------------

#: Metrics that AWS publishes, with the dimensions of the series that are read here.
#: https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/metrics-dimensions.html
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-available-cloudwatch-metrics.html
#: https://docs.aws.amazon.com/lambda/latest/dg/monitoring-metrics-types.html
#: https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-metrics.html
PUBLISHED: Final = {
    ("AWS/DynamoDB", "ConditionalCheckFailedRequests"): {"TableName"},
    ("AWS/DynamoDB", "ReadThrottleEvents"): {"TableName"},
    ("AWS/DynamoDB", "WriteThrottleEvents"): {"TableName"},
    ("AWS/DynamoDB", "ConsumedReadCapacityUnits"): {"TableName"},
    ("AWS/DynamoDB", "ConsumedWriteCapacityUnits"): {"TableName"},
    ("AWS/DynamoDB", "SystemErrors"): {"TableName", "Operation"},
    ("AWS/DynamoDB", "ReplicationLatency"): {"TableName", "ReceivingRegion"},
    ("AWS/SQS", "ApproximateNumberOfMessagesVisible"): {"QueueName"},
    ("AWS/SQS", "ApproximateAgeOfOldestMessage"): {"QueueName"},
    ("AWS/Lambda", "Errors"): {"FunctionName"},
    ("AWS/Lambda", "Throttles"): {"FunctionName"},
    ("AWS/Lambda", "Duration"): {"FunctionName"},
    ("AWS/ApiGateway", "Count"): {"ApiId"},
    ("AWS/ApiGateway", "5xx"): {"ApiId"},
}


def series(namespace: str, name: str, **dimensions: str) -> Metric:
    return namespace, name, tuple(sorted(dimensions.items()))


def watched_by(alarm: Mapping[str, Any]) -> set[Metric]:
    """The series that an alarm reads."""
    plain = (
        [alarm]
        if "MetricName" in alarm
        else [query["MetricStat"]["Metric"] for query in alarm["Metrics"] if "MetricStat" in query]
    )
    return {
        series(each["Namespace"], each["MetricName"], **{d["Name"]: d["Value"] for d in each["Dimensions"]}) for each in plain
    }


def drawn_on(dashboard: Mapping[str, Any]) -> set[Metric]:
    """The series that a dashboard shows."""
    drawn = set()
    for widget in json.loads(dashboard["DashboardBody"])["widgets"]:
        for namespace, name, *dimensions in widget["properties"]["metrics"]:
            values = [each for each in dimensions if isinstance(each, str)]
            drawn.add(series(namespace, name, **dict(zip(values[::2], values[1::2], strict=True))))
    return drawn


def to_metrics(stack: Stack, facts: Facts) -> Objections:
    """Every series that is watched or drawn exists, and the dashboard draws the library's own."""
    read = {name: watched_by(alarm) for name, alarm in stack.of_type("AWS::CloudWatch::Alarm").items()}
    read |= {name: drawn_on(dashboard) for name, dashboard in stack.of_type("AWS::CloudWatch::Dashboard").items()}
    objections = [
        f"{name} reads {metric}, which nobody writes"
        for name, metrics in read.items()
        for metric in metrics
        if not _exists(stack, metric, facts)
    ]
    own = {metric for metric in facts.metrics if metric[1] != "ReplicationConflict"}  # there are none in one Region
    return objections + [f"the dashboard does not draw {metric}" for metric in sorted(own - read["Dashboard"])]


def _exists(stack: Stack, metric: Metric, facts: Facts) -> bool:
    namespace, name, dimensions = metric
    if not namespace.startswith("AWS/"):
        return metric in facts.metrics
    values = {
        "TableName": {f"${{{table}}}" for table in stack.of_type(*TABLES)},
        "FunctionName": {f"${{{function}}}" for function in stack.of_type("AWS::Lambda::Function")},
        "QueueName": {f"${{{queue}.QueueName}}" for queue in stack.of_type("AWS::SQS::Queue")},
        "ApiId": {f"${{{api}}}" for api in stack.of_type("AWS::ApiGatewayV2::Api")},
        "Operation": {action.removeprefix("dynamodb:") for action in ON_RECORDS},
        "ReceivingRegion": {stack.parameters["ReplicaRegion"]},
    }
    named = {dimension for dimension, _ in dimensions}
    return PUBLISHED.get((namespace, name)) == named and all(value in values[dimension] for dimension, value in dimensions)


def to_alarms(stack: Stack, facts: Facts) -> Objections:
    """What must be watched is; an alarm tells the topic, if there is one, and no data is no news."""
    alarms = stack.of_type("AWS::CloudWatch::Alarm")
    watched = set().union(*map(watched_by, alarms.values()))
    objections = [f"nobody watches {metric}" for metric in sorted(to_watch(stack, facts) - watched)]
    topic = [stack.parameters["AlarmTopicArn"]] if stack.parameters["AlarmTopicArn"] else None
    for name, alarm in alarms.items():
        metrics = alarm.get("Metrics", [])
        shown = [query["Id"] for query in metrics if query.get("ReturnData", True)]
        problems = {
            "does not tell the topic": any(alarm.get(kind) != topic for kind in ("AlarmActions", "OKActions")),
            "goes off without data": alarm.get("TreatMissingData") != "notBreaching",
            # https://docs.aws.amazon.com/AmazonCloudWatch/latest/APIReference/API_MetricDataQuery.html
            "has no one series": bool(metrics) and len(shown) != 1,
            "has too many series": len(metrics) > 10,
            "has an id that is none": any(not re.fullmatch("[a-z][a-zA-Z0-9_]*", query["Id"]) for query in metrics),
            "counts what is missing as missing": any("FILL" not in query.get("Expression", "FILL") for query in metrics),
            "adds something else than sums": any(
                query["MetricStat"]["Stat"] != "Sum" for query in metrics if "MetricStat" in query
            ),
        }
        objections += [f"{name} {problem}" for problem, is_so in problems.items() if is_so]
    return objections


def to_watch(stack: Stack, facts: Facts) -> set[Metric]:
    """What an operator must hear of."""
    tables = [f"${{{table}}}" for table in sorted({function.table for function in FUNCTIONS.values()})]
    watched = {
        *(series("AWS/DynamoDB", f"{kind}ThrottleEvents", TableName=table) for table in tables for kind in ("Read", "Write")),
        *(
            series("AWS/DynamoDB", "SystemErrors", TableName=table, Operation=action.removeprefix("dynamodb:"))
            for table in tables
            for action in ON_RECORDS
        ),
        *(series("AWS/DynamoDB", "ConditionalCheckFailedRequests", TableName=table) for table in tables),
        *(series("AWS/Lambda", "Errors", FunctionName=f"${{{function}}}") for function in FUNCTIONS),
        series("AWS/ApiGateway", "5xx", ApiId="${Api}"),
        series("AWS/SQS", "ApproximateNumberOfMessagesVisible", QueueName="${OrdersDeadLetterQueue.QueueName}"),
        series("AWS/SQS", "ApproximateAgeOfOldestMessage", QueueName="${OrdersQueue.QueueName}"),
        *(metric for metric in facts.metrics if metric[1] in ("TakenOver", "LeaseLost", "ResultNotKept")),
    }
    if stack.parameters["Replication"] == "eventual":
        region = stack.parameters["ReplicaRegion"]
        watched.add(series("AWS/DynamoDB", "ReplicationLatency", TableName="${PaymentsTable}", ReceivingRegion=region))
        watched |= {metric for metric in facts.metrics if metric[1] == "ReplicationConflict"}
    return watched


OUTPUTS: Final = {
    "PaymentsUrl": "https://${Api}.execute-api.eu-west-1.amazonaws.com/payments",
    "BillsUrl": "https://${Api}.execute-api.eu-west-1.amazonaws.com/bills",
    "OrdersQueueUrl": "${OrdersQueue}",
    "OrdersDeadLetterQueueUrl": "${OrdersDeadLetterQueue}",
    "PaymentsTableName": "${PaymentsTable}",
    "SharedTableName": "${SharedTable}",
    "ChargesTableName": "${ChargesTable}",
    "PaymentsFunctionArn": "${PaymentsFunction.Arn}",
    "OrdersFunctionArn": "${OrdersFunction.Arn}",
    "BillsFunctionArn": "${BillsFunction.Arn}",
}


def to_outputs(stack: Stack, facts: Facts) -> Objections:
    """A caller finds what it needs, and every reference of an output leads somewhere."""
    objections = [f"{name} is {stack.outputs.get(name)}" for name, value in OUTPUTS.items() if stack.outputs.get(name) != value]
    named = {name: re.findall(r"\$\{(\w+)", str(value)) for name, value in stack.outputs.items()}
    return objections + [f"{name} names {each}" for name, found in named.items() for each in found if each not in stack.resources]


CHECKS: Final[list[Callable[[Stack, Facts], Objections]]] = [
    to_rights,
    to_roles,
    to_the_endpoint,
    to_tables,
    to_replicas,
    to_functions,
    to_times,
    to_queues,
    to_logs,
    to_the_api,
    to_the_network,
    to_metrics,
    to_alarms,
    to_outputs,
]


# ---- The mutants ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mutant:
    """A mistake in the template, and the objection to it."""

    mistake: str
    make: Callable[[Template], object]
    check: Callable[[Stack, Facts], Objections]
    objection: str
    choice: str = "as it is"


def properties(template: Template, name: str) -> dict[str, Any]:
    found: dict[str, Any] = template["Resources"][name]["Properties"]
    return found


def statement(template: Template, name: str, sid: str) -> dict[str, Any]:
    """The statement of that Sid in the policies of a resource."""
    of = properties(template, name)
    documents = [policy["PolicyDocument"] for policy in of.get("Policies", [])] + [of.get("PolicyDocument", {"Statement": []})]
    (found,) = [each for document in documents for each in document["Statement"] if each["Sid"] == sid]
    assert isinstance(found, dict)
    return found


def orders_records(template: Template) -> dict[str, Any]:
    return statement(template, "OrdersRole", "RecordsOfThisPartition")


def set_(container: Any, key: Any, value: Any) -> None:
    assert container[key] != value
    container[key] = value


def set_body(template: Template, old: str, new: str) -> None:
    """Change the dashboard."""
    body = properties(template, "Dashboard")["DashboardBody"]
    set_(body, "Fn::Sub", body["Fn::Sub"].replace(old, new))


MUTANTS: Final = [
    Mutant(
        "an action is missing",
        lambda t: orders_records(t)["Action"].remove("dynamodb:DeleteItem"),
        to_rights,
        "OrdersRole lacks Allow dynamodb:DeleteItem ${SharedTable.Arn}",
    ),
    Mutant(
        "an action is too many",
        lambda t: orders_records(t)["Action"].append("dynamodb:Query"),
        to_rights,
        "OrdersRole does not need Allow dynamodb:Query ${SharedTable.Arn}",
    ),
    Mutant(
        "an action is a wildcard",
        lambda t: set_(statement(t, "PaymentsRole", "RecordsOfThisTable"), "Action", "dynamodb:*"),
        to_rights,
        "PaymentsRole does not need Allow dynamodb:* ${PaymentsTable.Arn}",
    ),
    Mutant(
        "a resource is a wildcard",
        lambda t: set_(statement(t, "OrdersRole", "TakeMessages"), "Resource", "*"),
        to_rights,
        "OrdersRole does not need Allow sqs:DeleteMessage *",
    ),
    Mutant(
        "a role reaches the table of another",
        lambda t: set_(statement(t, "PaymentsRole", "RecordsOfThisTable"), "Resource", {"Fn::GetAtt": ["SharedTable", "Arn"]}),
        to_rights,
        "PaymentsRole does not need Allow dynamodb:GetItem ${SharedTable.Arn}",
    ),
    Mutant(
        "no leading keys are asked for",
        lambda t: orders_records(t)["Condition"]["ForAllValues:StringEquals"].pop("dynamodb:LeadingKeys"),
        to_rights,
        "OrdersRole lacks Allow dynamodb:GetItem",
    ),
    Mutant(
        "the leading keys are those of another",
        lambda t: set_(orders_records(t)["Condition"]["ForAllValues:StringEquals"], "dynamodb:LeadingKeys", ["bills"]),
        to_rights,
        "OrdersRole lacks Allow dynamodb:GetItem",
    ),
    Mutant(
        "leading keys may be absent",
        lambda t: orders_records(t)["Condition"].pop("Null"),
        to_rights,
        "OrdersRole lacks Allow dynamodb:GetItem",
    ),
    Mutant(
        "nothing is denied",
        lambda t: properties(t, "BillsRole")["ManagedPolicyArns"].remove({"Ref": "PartitionGuardPolicy"}),
        to_rights,
        "BillsRole lacks Deny dynamodb:Scan ${SharedTable.Arn}",
    ),
    Mutant(
        "PartiQL is not denied",
        lambda t: statement(t, "PartitionGuardPolicy", "NothingThatSpansPartitions")["Action"].remove("dynamodb:PartiQLSelect"),
        to_rights,
        "OrdersRole lacks Deny dynamodb:PartiQLSelect",
    ),
    Mutant(
        "an attribute is not listed",
        lambda t: t["Mappings"]["Record"]["Attributes"]["Names"].remove("region"),
        to_rights,
        "PaymentsRole lacks Allow dynamodb:PutItem",
        "restricted",
    ),
    Mutant(
        "the functions' code may change the network",
        lambda t: properties(t, "NetworkPolicy")["PolicyDocument"]["Statement"].pop(),
        to_rights,
        "BillsRole lacks Deny ec2:CreateNetworkInterface *",
        "gateway",
    ),
    Mutant(
        "the key is for every service",
        lambda t: statement(t, "KeyPolicy", "UseTheTablesKey").pop("Condition"),
        to_rights,
        "OrdersRole lacks Allow kms:Decrypt",
        "own key",
    ),
    Mutant(
        "a role is left to SAM",
        lambda t: properties(t, "BillsFunction").pop("Role"),
        to_roles,
        "the roles are ['BillsFunctionRole', 'BillsRole',",
    ),
    Mutant(
        "a function has the role of another",
        lambda t: set_(properties(t, "BillsFunction"), "Role", {"Fn::GetAtt": ["OrdersRole", "Arn"]}),
        to_roles,
        "BillsFunction does not have BillsRole",
    ),
    Mutant(
        "a policy is AWS's",
        lambda t: properties(t, "OrdersRole")["ManagedPolicyArns"].append("arn:aws:iam::aws:policy/AmazonDynamoDBFullAccess"),
        to_roles,
        "AmazonDynamoDBFullAccess, which is not the stack's",
    ),
    Mutant(
        "everybody may take a role",
        lambda t: set_(properties(t, "OrdersRole")["AssumeRolePolicyDocument"]["Statement"][0], "Principal", {"AWS": "*"}),
        to_roles,
        "OrdersRole trusts",
    ),
    Mutant(
        "a policy is attached after its function",
        lambda t: properties(t, "ChargesPolicy").update(Roles=[{"Ref": "OrdersRole"}]),
        to_roles,
        "ChargesPolicy is attached to a role whose function may have started without it",
    ),
    Mutant(
        "everybody passes the endpoint",
        lambda t: statement(t, "DynamoDBEndpoint", "Charges").pop("Condition"),
        to_the_endpoint,
        "the endpoint passes anybody Allow dynamodb:UpdateItem ${ChargesTable.Arn}",
        "interface",
    ),
    Mutant(
        "the endpoint passes a Scan",
        lambda t: statement(t, "DynamoDBEndpoint", "PaymentsRecords")["Action"].append("dynamodb:Scan"),
        to_the_endpoint,
        "the endpoint passes ${PaymentsRole.Arn} Allow dynamodb:Scan",
        "gateway",
    ),
    Mutant(
        "the endpoint stops a function",
        lambda t: properties(t, "DynamoDBEndpoint")["PolicyDocument"]["Statement"].pop(0),
        to_the_endpoint,
        "the endpoint stops ${PaymentsRole.Arn} Allow dynamodb:GetItem",
        "gateway",
    ),
    Mutant(
        "records expire by another attribute",
        lambda t: set_(properties(t, "SharedTable")["TimeToLiveSpecification"], "AttributeName", "ttl"),
        to_tables,
        "SharedTable does not expire by expiration",
    ),
    Mutant(
        "a strong table has a TTL",
        lambda t: properties(t, "PaymentsTable").update(TimeToLiveSpecification={"AttributeName": "expiration", "Enabled": True}),
        to_tables,
        "PaymentsTable has a TTL, which strong replication refuses",
        "strong",
    ),
    Mutant(
        "a table goes with its stack",
        lambda t: t["Resources"]["PaymentsTable"].pop("DeletionPolicy"),
        to_tables,
        "PaymentsTable can be deleted with the stack",
    ),
    Mutant(
        "a table goes with an update",
        lambda t: set_(t["Resources"]["ChargesTable"], "UpdateReplacePolicy", "Delete"),
        to_tables,
        "ChargesTable can be deleted by an update",
    ),
    Mutant(
        "a replica has no recovery",
        lambda t: properties(t, "PaymentsTable")["Replicas"][1]["Fn::If"][1].pop("PointInTimeRecoverySpecification"),
        to_tables,
        "PaymentsTable has no recovery (eu-central-1)",
        "eventual",
    ),
    Mutant(
        "a replica is encrypted by the key of another Region",
        lambda t: properties(t, "PaymentsTable")["Replicas"][1]["Fn::If"][1].update(SSESpecification={"KMSMasterKeyId": KEY_ARN}),
        to_tables,
        "PaymentsTable is not encrypted by its own key (eu-central-1)",
        "all",
    ),
    Mutant(
        "a table has a provisioned capacity",
        lambda t: properties(t, "PaymentsTable").pop("BillingMode"),
        to_tables,
        "PaymentsTable is not on demand",
    ),
    Mutant(
        "a table has keys that its store does not know",
        lambda t: set_(properties(t, "SharedTable")["KeySchema"][1], "AttributeName", "sk"),
        to_tables,
        "SharedTable has the keys [('id', 'HASH'), ('sk', 'RANGE')]",
    ),
    Mutant(
        "the store is not told of its replicas",
        lambda t: properties(t, "PaymentsFunction")["Environment"]["Variables"].update(TABLE_REPLICATION=""),
        to_replicas,
        "the store is told ''",
        "eventual",
    ),
    Mutant(
        "a handler does not exist",
        lambda t: set_(properties(t, "OrdersFunction"), "Handler", "sample.order.handler"),
        to_functions,
        "OrdersFunction calls sample.order.handler",
    ),
    Mutant(
        "a function is not told its table",
        lambda t: properties(t, "BillsFunction")["Environment"]["Variables"].pop("SHARED_TABLE"),
        to_functions,
        "BillsFunction is not told ['SHARED_TABLE']",
    ),
    Mutant(
        "messages are visible too early",
        lambda t: set_(properties(t, "OrdersQueue"), "VisibilityTimeout", 100),
        to_times,
        "a batch is delivered again while it is processed",
    ),
    Mutant(
        "a function outlives the API's patience",
        lambda t: set_(properties(t, "BillsFunction"), "Timeout", 30),
        to_times,
        "the API does not wait for a function",
    ),
    Mutant(
        "dead letters are kept for as long as others",
        lambda t: properties(t, "OrdersDeadLetterQueue").pop("MessageRetentionPeriod"),
        to_times,
        "dead letters expire before letters",
    ),
    Mutant(
        "a failure repeats its batch",
        lambda t: properties(t, "OrdersFunction")["Events"]["Orders"]["Properties"].pop("FunctionResponseTypes"),
        to_queues,
        "a failure repeats its batch",
    ),
    Mutant(
        "failures are not kept",
        lambda t: properties(t, "OrdersQueue").pop("RedrivePolicy"),
        to_queues,
        "failures are not kept",
    ),
    Mutant(
        "a log is kept for ever",
        lambda t: properties(t, "ApiLogs").pop("RetentionInDays"),
        to_logs,
        "ApiLogs is kept for ever",
    ),
    Mutant(
        "a route asks for no signature",
        lambda t: properties(t, "BillsFunction")["Events"]["Post"]["Properties"].update(Auth={"Authorizer": "NONE"}),
        to_the_api,
        "post /bills asks for no signature",
    ),
    Mutant(
        "the functions can be called from the network",
        lambda t: properties(t, "FunctionsSecurityGroup").update(SecurityGroupIngress=[{"IpProtocol": "-1"}]),
        to_the_network,
        "somebody can call the functions",
        "gateway",
    ),
    Mutant(
        "there is a way to the internet",
        lambda t: t["Resources"].update(Internet={"Type": "AWS::EC2::InternetGateway"}),
        to_the_network,
        "there is ['AWS::EC2::InternetGateway'], too",
        "interface",
    ),
    Mutant(
        "a subnet has no route",
        lambda t: t["Resources"].pop("SubnetBRoutes"),
        to_the_network,
        "a subnet has no route to it",
        "gateway",
    ),
    Mutant(
        "a metric of AWS is misspelt",
        lambda t: set_(properties(t, "ApiErrors"), "MetricName", "5XXError"),
        to_metrics,
        "('AWS/ApiGateway', '5XXError', (('ApiId', '${Api}'),)), which nobody writes",
    ),
    Mutant(
        "a metric of the sample is misspelt",
        lambda t: set_(properties(t, "Takeovers"), "MetricName", "Takeover"),
        to_metrics,
        "'Takeover'",
    ),
    Mutant(
        "a dimension is missing",
        lambda t: properties(t, "TableSystemErrors")["Metrics"][1]["MetricStat"]["Metric"]["Dimensions"].pop(),
        to_metrics,
        "TableSystemErrors reads ('AWS/DynamoDB', 'SystemErrors', (('TableName',",
    ),
    Mutant(
        "the dashboard draws another metric",
        lambda t: set_body(t, "TakenOver", "Takenover"),
        to_metrics,
        "the dashboard does not draw ('IdempotentPayments', 'TakenOver', (('service', 'a-stack'),))",
    ),
    Mutant(
        "an alarm is missing",
        lambda t: t["Resources"].pop("DeadLetters"),
        to_alarms,
        "nobody watches ('AWS/SQS', 'ApproximateNumberOfMessagesVisible'",
    ),
    Mutant(
        "an alarm tells nobody",
        lambda t: properties(t, "LostLeases").pop("AlarmActions"),
        to_alarms,
        "LostLeases does not tell the topic",
        "alarmed",
    ),
    Mutant(
        "an alarm goes off without data",
        lambda t: properties(t, "DeadLetters").pop("TreatMissingData"),
        to_alarms,
        "DeadLetters goes off without data",
    ),
    Mutant(
        "an output is gone",
        lambda t: t["Outputs"].pop("OrdersQueueUrl"),
        to_outputs,
        "OrdersQueueUrl is None",
    ),
]

#: What cfn-lint must find.
LINT_MUTANTS: Final[dict[str, tuple[Callable[[Template], object], str]]] = {
    "a property is misspelt": (
        lambda t: properties(t, "OrdersQueue").update(VisibilityTimeOut=150),
        "E3002 Resources.OrdersQueue.Properties.VisibilityTimeOut",
    ),
    "a resource does not exist": (
        lambda t: set_(t["Outputs"]["OrdersQueueUrl"], "Value", {"Ref": "OrderQueue"}),
        "E6101 Outputs.OrdersQueueUrl.Value.Ref",
    ),
    "a resource is there under another condition": (
        lambda t: set_(t["Resources"]["KeyPolicy"], "Condition", "IsTraced"),
        "W1001 Resources.OrdersRole.Properties.ManagedPolicyArns",
    ),
    "a value is none of those allowed": (
        lambda t: set_(properties(t, "SharedTable"), "BillingMode", "PER_REQUEST"),
        "E3030 Resources.SharedTable.Properties.BillingMode",
    ),
    "a parameter is not used": (
        lambda t: t["Parameters"].update(Unused={"Type": "String"}),
        "W2001 Parameters.Unused",
    ),
}
#: What cfn-lint would have said everywhere, and what is meant here.
MEANT: Final = {
    "I3011": "Queues and log groups go with the stack: what they hold is on its way, or about the stack.",
}


# ---- What the handlers really ask of DynamoDB ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sent:
    """A request, as IAM sees it."""

    function: str
    action: str
    #: The ARN, as the template names it.
    table: str
    leading_key: str
    attributes: frozenset[str]

    @property
    def context(self) -> dict[str, frozenset[str]]:
        """Its condition keys."""
        role = FUNCTIONS[self.function].role
        return {
            "dynamodb:LeadingKeys": frozenset({self.leading_key}),
            "dynamodb:Attributes": self.attributes,
            "aws:PrincipalArn": frozenset({f"${{{role}.Arn}}"}),
        }


#: Words of expressions that are no names of attributes.
WORDS: Final = {"SET", "REMOVE", "ADD", "DELETE", "AND", "OR", "NOT", "BETWEEN", "IN"}
#: More than the invocation had left: its lease has ended.
A_WHILE_SECONDS: Final = 120


class Laboratory:
    """The handlers on tables as the template defines them, and what they send there."""

    def __init__(self, stack: Stack, endpoint: str) -> None:
        self._stack = stack
        self._endpoint = endpoint
        self._client = shared_client(endpoint)
        self._tables = {f"${{{name}}}": self._made(table) for name, table in stack.of_type(*TABLES).items()}
        self.sent: set[Sent] = set()
        #: Function, and the name of an event that it counted.
        self.met: set[tuple[str, str]] = set()

    def _made(self, table: dict[str, Any]) -> str:
        return create_table(
            self._client,
            **{f"{kind}_attr": key["AttributeName"] for kind, key in zip(("key", "sort_key"), table["KeySchema"], strict=False)},
        )

    def run(self, name: str, **variables: str) -> None:
        """Let the function meet everything that can happen to a key."""
        function = FUNCTIONS[name]
        environment = {key: self._tables.get(value, value) for key, value in environment_of(self._stack).items()}
        with sample_with({**environment, **variables, "AWS_ENDPOINT_URL_DYNAMODB": self._endpoint}) as sample:
            module = getattr(sample, function.module)
            with closing(module.store.client) as client:
                for each in (client, sample.provider.client):
                    each.meta.events.register("before-parameter-build.dynamodb", partial(self._record, name))
                with redirect_stdout(log := io.StringIO()):
                    self._tell_everything(module, function)
        lines = [json.loads(line) for line in log.getvalue().splitlines()]
        self.met |= {(name, metric["Name"]) for line in lines for metric in line["_aws"]["CloudWatchMetrics"][0]["Metrics"]}

    def _tell_everything(self, module: Any, function: Function) -> None:
        clock = module.store.clock_ms = FakeClock()
        charge = module.charge

        def call(order_id: str, amount: int = 1, charging: Callable[..., str] = charge) -> None:
            module.charge = charging
            with suppress(Exception):  # what becomes of a call is told elsewhere
                module.handler(function.event(order_id, amount), Invocation("request"))

        def overtaken(order_id: str, amount: int, *, idempotency_key: str) -> str:
            clock.advance(seconds=A_WHILE_SECONDS)
            call("overtaken")
            return str(charge(order_id, amount, idempotency_key=idempotency_key))

        def bereft(order_id: str, amount: int, *, idempotency_key: str) -> str:
            self._delete_records(function.table)
            return str(charge(order_id, amount, idempotency_key=idempotency_key))

        call("new")
        call("new")  # a duplicate
        call("new", 2)  # another payload
        call("declined-new")  # released
        call("overtaken", charging=overtaken)
        call("bereft", charging=bereft)
        call("large", charging=lambda *_, **__: "x" * 400_000)
        call("too large", charging=lambda *_, **__: incompressible(600_000))
        module.store.fetch("a key whose claim was not answered")

    def _delete_records(self, table: str) -> None:
        name, keys = self._tables[f"${{{table}}}"], [key["AttributeName"] for key in self._stack.properties(table)["KeySchema"]]
        for item in self._client.scan(TableName=name, ConsistentRead=True)["Items"]:
            self._client.delete_item(TableName=name, Key={key: item[key] for key in keys})

    def _record(self, function: str, params: dict[str, Any], model: Any, **_: Any) -> None:
        reference = next(reference for reference, name in self._tables.items() if name == params["TableName"])
        key = next(each["AttributeName"] for each in self._stack.properties(self._stack.named(reference))["KeySchema"])
        item = params.get("Item") or params["Key"]
        named = {*item, *params.get("ExpressionAttributeNames", {}).values(), *names_in(params)}
        self.sent.add(Sent(function, f"dynamodb:{model.name}", reference.replace("}", ".Arn}"), item[key]["S"], frozenset(named)))

    def to_records(self) -> set[Sent]:
        """What was not sent to the provider."""
        return {request for request in self.sent if request.table != "${ChargesTable.Arn}"}


def names_in(params: Mapping[str, Any]) -> Iterator[str]:
    """The attributes that expressions name without a placeholder."""
    for name, expression in params.items():
        if name.endswith("Expression"):
            yield from (word for word in re.findall(r"(?<![\w:#.])[A-Za-z_]\w*(?!\w*\s*\()", expression) if word not in WORDS)


@pytest.fixture(scope="module")
def laboratory(stack: Callable[..., Stack], dynamodb_local: str) -> Laboratory:
    laboratory = Laboratory(stack("as it is"), dynamodb_local)
    for name in FUNCTIONS:
        laboratory.run(name)
    laboratory.run("PaymentsFunction", TABLE_REPLICATION="eventual")
    return laboratory


def refused_by_the_roles(stack: Stack, sent: set[Sent]) -> list[Sent]:
    roles = {name: stack.statements[function.role] for name, function in FUNCTIONS.items()}
    return [each for each in sent if not is_allowed(roles[each.function], each.action, each.table, each.context)]


def refused_by_the_endpoint(stack: Stack, sent: set[Sent]) -> list[Sent]:
    passing = statements_of(stack.properties("DynamoDBEndpoint")["PolicyDocument"])
    return [each for each in sent if not is_allowed(passing, each.action, each.table, each.context)]


@pytest.mark.parametrize("choice", CHOICES)
def test_the_roles_allow_what_the_handlers_send(stack: Callable[..., Stack], laboratory: Laboratory, choice: str) -> None:
    assert refused_by_the_roles(stack(choice), laboratory.sent) == []


@pytest.mark.parametrize("choice", [name for name, choice in CHOICES.items() if "Network" in choice])
def test_the_endpoint_passes_what_the_handlers_send(stack: Callable[..., Stack], laboratory: Laboratory, choice: str) -> None:
    assert refused_by_the_endpoint(stack(choice), laboratory.sent) == []


@pytest.mark.parametrize(
    ("mistake", "choice"),
    [
        ("an action is missing", "as it is"),
        ("a role reaches the table of another", "as it is"),
        ("the leading keys are those of another", "as it is"),
        ("an attribute is not listed", "restricted"),
    ],
)
def test_a_mistake_in_a_role_refuses_what_a_handler_sends(
    stack: Callable[..., Stack], laboratory: Laboratory, mistake: str, choice: str
) -> None:
    assert refused_by_the_roles(stack(choice, mistake), laboratory.sent) != []


def test_the_handlers_have_met_what_this_is_about(laboratory: Laboratory) -> None:
    events = {"Replayed", "TakenOver", "LeaseLost", "ResultNotKept"}

    restored = {each.function for each in laboratory.sent if each.action == "dynamodb:PutItem" and "data" in each.attributes}

    assert laboratory.met == {(name, event) for name in FUNCTIONS for event in events}
    assert restored == set(FUNCTIONS)


def test_the_handlers_use_every_action_on_records_that_they_have(laboratory: Laboratory) -> None:
    for name in FUNCTIONS:
        assert {each.action for each in laboratory.to_records() if each.function == name} == set(ON_RECORDS)


def test_the_list_of_attributes_is_what_the_handlers_name(source: Template, facts: Facts, laboratory: Laboratory) -> None:
    listed = source["Mappings"]["Record"]["Attributes"]["Names"]

    named = frozenset().union(*(each.attributes for each in laboratory.to_records()))

    assert len(listed) == len(set(listed))
    assert set(listed) == named == facts.attributes


@pytest.mark.parametrize(
    ("action", "table", "context"),
    [
        ("dynamodb:GetItem", "${SharedTable.Arn}", {"dynamodb:LeadingKeys": {"bills"}}),
        ("dynamodb:PutItem", "${SharedTable.Arn}", {"dynamodb:LeadingKeys": {"orders", "bills"}}),
        ("dynamodb:GetItem", "${SharedTable.Arn}", {}),
        ("dynamodb:Scan", "${SharedTable.Arn}", {}),
        ("dynamodb:Query", "${SharedTable.Arn}", {"dynamodb:LeadingKeys": {"orders"}}),
        ("dynamodb:BatchGetItem", "${SharedTable.Arn}", {"dynamodb:LeadingKeys": {"orders"}}),
        ("dynamodb:PartiQLSelect", "${SharedTable.Arn}", {"dynamodb:LeadingKeys": {"orders"}}),
        ("dynamodb:GetItem", "${PaymentsTable.Arn}", {"dynamodb:LeadingKeys": {"orders"}}),
        ("dynamodb:GetItem", "${ChargesTable.Arn}", {}),
        ("dynamodb:DeleteTable", "${SharedTable.Arn}", {}),
        ("sqs:SendMessage", "${OrdersQueue.Arn}", {}),
        ("logs:PutLogEvents", "${BillsLogs.Arn}", {}),
        ("ec2:CreateNetworkInterface", "${SubnetA}", {"lambda:SourceFunctionArn": {"${OrdersFunction.Arn}"}}),
        ("dynamodb:PutItem", "${SharedTable.Arn}", {"dynamodb:LeadingKeys": {"orders"}, "dynamodb:Attributes": {"id", "salary"}}),
        ("kms:Decrypt", KEY_ARN, {"kms:ViaService": {"s3.eu-west-1.amazonaws.com"}}),
    ],
    ids=str,
)
def test_the_role_of_orders_does_not_allow(
    stack: Callable[..., Stack], action: str, table: str, context: dict[str, set[str]]
) -> None:
    assert not is_allowed(stack("all").statements["OrdersRole"], action, table, context)


def test_lambda_itself_may_attach_a_function_to_the_network(stack: Callable[..., Stack]) -> None:
    assert is_allowed(stack("gateway").statements["OrdersRole"], "ec2:CreateNetworkInterface", "${SubnetA}", {})


# ---- The tests -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source() -> Template:
    """The template as it is written."""
    try:
        return load()
    except EngineUnavailableError as error:
        refuse("SAM", error)


@pytest.fixture(scope="module")
def templates(source: Template) -> dict[str, Template]:
    """The template and the mutants as CloudFormation gets them; the former has no name."""
    sources = {"": deepcopy(source)}
    mistakes = {mutant.mistake: mutant.make for mutant in MUTANTS} | {name: make for name, (make, _) in LINT_MUTANTS.items()}
    for name, make in mistakes.items():
        make(sources.setdefault(name, deepcopy(source)))
    return dict(zip(sources, translated(list(sources.values())), strict=True))


@pytest.fixture(scope="module")
def stack(templates: dict[str, Template]) -> Callable[..., Stack]:
    """The stack of a choice, of the template or of a mutant."""
    return lambda choice, mistake="": resolve(templates[mistake], **CHOICES[choice])


@pytest.fixture(scope="module")
def findings(templates: dict[str, Template]) -> dict[str, list[str]]:
    """What cfn-lint says of the template, written and translated, and of its mutants."""
    mutants = {mistake: templates[mistake] for mistake in LINT_MUTANTS}
    return lint({"as it is written": TEMPLATE, "as it is translated": templates[""], **mutants})


@pytest.mark.parametrize("form", ["as it is written", "as it is translated"])
def test_cfn_lint_finds_nothing_but_what_is_meant(findings: dict[str, list[str]], form: str) -> None:
    found = findings[form]

    assert [finding for finding in found if finding.split()[0] not in MEANT] == []


@pytest.mark.parametrize("mistake", LINT_MUTANTS)
def test_cfn_lint_finds_a_mistake(findings: dict[str, list[str]], mistake: str) -> None:
    _, expected = LINT_MUTANTS[mistake]

    assert any(finding.startswith(expected) for finding in findings[mistake]), findings[mistake]


def test_sam_validates_the_template() -> None:
    try:
        said = sam.run(None, "validate", "--lint", "--template-file", str(TEMPLATE), cwd=ROOT)
    except EngineUnavailableError as error:
        refuse("SAM", error)

    assert "is a valid SAM Template" in said


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_there_is_no_objection(
    stack: Callable[..., Stack], facts: Facts, choice: str, check: Callable[[Stack, Facts], Objections]
) -> None:
    assert check(stack(choice), facts) == []


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.mistake)
def test_there_is_an_objection_if(stack: Callable[..., Stack], facts: Facts, mutant: Mutant) -> None:
    objections = mutant.check(stack(mutant.choice, mutant.mistake), facts)

    assert any(mutant.objection in objection for objection in objections), objections


def test_every_check_has_an_objection_to_something() -> None:
    assert {mutant.check for mutant in MUTANTS} == set(CHECKS)


@pytest.mark.parametrize("choice", CHOICES)
def test_a_choice_that_makes_sense_is_accepted(templates: dict[str, Template], choice: str) -> None:
    assert refusals(templates[""], **CHOICES[choice]) == []


@pytest.mark.parametrize(
    ("choice", "refusal"),
    [
        ({"Replication": "eventual"}, "Replication needs ReplicaRegion"),
        ({"Replication": "strong", "ReplicaRegion": "eu-central-1"}, "Strong replication needs WitnessRegion"),
        ({**EVENTUAL, "KmsKeyArn": KEY_ARN}, "A replicated table with KmsKeyArn needs ReplicaKmsKeyArn"),
        ({**EVENTUAL, "ReplicaRegion": "eu-west-1"}, "ReplicaRegion is another Region than the stack's"),
        ({**STRONG, "WitnessRegion": "eu-central-1"}, "Strong replication takes three Regions"),
        ({"ReplicaKmsKeyArn": REPLICA_KEY_ARN}, "ReplicaKmsKeyArn needs KmsKeyArn"),
        ({"KmsKeyArn": "alias/k"}, "KmsKeyArn"),
        ({"AlarmTopicArn": "alarms"}, "AlarmTopicArn"),
        ({"Replication": "sometimes"}, "Replication"),
        ({"VpcCidr": "10.0.0.0/8"}, "VpcCidr"),
        ({"MemoryMB": "64"}, "MemoryMB"),
    ],
    ids=str,
)
def test_a_choice_that_makes_no_sense_is_refused(templates: dict[str, Template], choice: dict[str, str], refusal: str) -> None:
    assert refusal in refusals(templates[""], **choice)


def test_a_choice_that_makes_no_sense_is_refused_by_a_rule(templates: dict[str, Template]) -> None:
    without_rules = {**templates[""], "Rules": {}}

    assert refusals(without_rules, Replication="strong") == []
    assert refusals(templates[""], Replication="strong") != []
