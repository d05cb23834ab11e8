"""ministack, and what our template needs and it lacks.  Run by the Python of `.venvs/ministack`; `stack.emulator` starts it.

ministack accepts more than AWS does.  Where that would let a wrong template pass, this is stricter:

- conditions on `dynamodb:LeadingKeys` and `dynamodb:Attributes` see what a request touches; ministack knows no leading keys, and
  no attributes of writes;
- a batch of messages is sent, deleted or hidden by whoever may do that with one; ministack knows actions that AWS does not;
- CloudFormation applies `TimeToLiveSpecification` and the other settings of a table; ministack ignores them;
- CloudFormation accepts alarms on expressions, and never evaluates them; ministack refuses them;
- CloudFormation makes the routes that an HTTP API's `Body` describes, with their authorization; ministack ignores the `Body`;
- a queue is mapped to a function only if the function's role may read it;
- an HTTP API answers to the host names that AWS gives it;
- a function whose artifact is not there is not made; ministack makes one that does nothing and succeeds;
- functions run in an interpreter that has nothing but their artifact; ministack runs them in its own, with its packages.

And it is faster: an artifact of thousands of files is unpacked once, and not for each environment.

Everything is written for one version, and refuses another.  A patch whose target is not there ends the process.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from hashlib import sha256
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final
from zipfile import BadZipFile, LargeZipFile, ZipFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

VERSION: Final = "1.5.33"
#: The interpreter for functions.
FUNCTION_PYTHON: Final = "FUNCTION_PYTHON"

#: What AWS demands of a function's role before it maps a queue to the function.
#: https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-configure.html#events-sqs-permissions
QUEUE_ACTIONS: Final = ("sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes")
EXPRESSIONS: Final = (
    "ConditionExpression",
    "FilterExpression",
    "KeyConditionExpression",
    "ProjectionExpression",
    "UpdateExpression",
)
#: The first name of a path; a word before a parenthesis is a function.
NAME: Final = re.compile(r"(?<![\w:#.])(#?\w+)(?![\w#]*\s*\()")
KEYWORDS: Final = frozenset({"ADD", "AND", "BETWEEN", "DELETE", "IN", "NOT", "OR", "REMOVE", "SET"})

Document = dict[str, Any]
Handler = dict[str, Any]


def main() -> None:
    """Serve until the process is killed."""
    kill_functions_at_the_end()
    found = version("ministack")
    if found != VERSION:
        raise SystemExit(f"This is for ministack {VERSION}, and here is {found}")
    see_what_requests_touch(module("core.iam_actions"), module("services.dynamodb"))
    replace(module("core.iam_actions"), "extract_iam_action", action_of_batches)
    handlers = module("services.cloudformation.provisioners")._RESOURCE_HANDLERS
    configure_tables(handlers, module("services.dynamodb"))
    replace(module("services.cloudformation.provisioners"), "_cw_metric_alarm_record", alarm_on_expressions)
    make_routes(handlers, module("services.apigateway"))
    check_readers_of_queues(handlers, module("services.lambda_svc"), module("core.iam_evaluator"))
    replace(module("services.lambda_svc"), "_fetch_code_from_s3", artifact_that_is_there)
    run_functions_by(os.environ[FUNCTION_PYTHON], module("core.lambda_runtime"))
    unpacking = SimpleNamespace(ZipFile=UnpackedOnce, BadZipFile=BadZipFile, LargeZipFile=LargeZipFile)
    replace(module("core.lambda_runtime"), "zipfile", lambda _: unpacking)
    app = module("app")
    replace(app, "_EXECUTE_API_RE", lambda _: re.compile(r"^([a-f0-9]{8})\.execute-api\.[a-z0-9.-]+(?::\d+)?$"))
    app.main()


def kill_functions_at_the_end() -> None:
    """When this process is killed, kill what is in its process group: functions that run, which do not notice.

    A process of its own waits for that.  The end of its standard input tells it: the other end is ours alone, and stays open.
    """
    wait = "import os, signal; os.read(0, 1); os.killpg(0, signal.SIGKILL)"
    theirs, _ = os.pipe()
    subprocess.Popen([sys.executable, "-I", "-c", wait], stdin=theirs)
    os.close(theirs)


def module(name: str) -> ModuleType:
    return import_module(f"ministack.{name}")


def replace(owner: ModuleType, name: str, make: Callable[[Any], Any]) -> None:
    """Put what *make* makes of an attribute in its place.  An attribute that is not there is an error."""
    setattr(owner, name, make(getattr(owner, name)))


# What a request does


def action_of_batches(original: Callable[..., str | None]) -> Callable[..., str | None]:
    """The action of a batch's entries, which a policy names.

    https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-batch-api.html
    """

    def action(*request: Any) -> str | None:
        found = original(*request)
        return found.removesuffix("Batch") if found and found.startswith("sqs:") else found

    return action


def see_what_requests_touch(iam_actions: ModuleType, dynamodb: ModuleType) -> None:
    """Give conditions the keys that AWS has for a request to DynamoDB.

    https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/specifying-conditions.html#FGAC_DDB.ConditionKeys.
    The actions of a transaction or a batch are judged by the keys of all of them; AWS judges each by its own.
    """

    def partition_key(table_name: str) -> str:
        table = dynamodb._tables.get(dynamodb._normalize_table_name(table_name))
        return str(table["pk_name"]) if table else ""

    def make(original: Callable[[bytes], Document]) -> Callable[[bytes], Document]:
        def context(body: bytes) -> Document:
            found = original(body)
            actions = list(actions_in(json.loads(body or b"{}")))
            keys = [key for action in actions for key in leading_keys(action, partition_key)]
            attributes = sorted({name for action in actions for name in attributes_in(action)})
            returned = [action["ReturnValues"] for action in actions if "ReturnValues" in action]
            return {
                **found,
                **({"dynamodb:LeadingKeys": keys} if keys else {}),
                **({"dynamodb:Attributes": attributes} if attributes else {}),
                **({"dynamodb:ReturnValues": returned[0]} if returned else {}),
            }

        return context

    replace(iam_actions, "dynamodb_service_context", make)


def actions_in(request: Document) -> Iterator[Document]:
    """What the request does to each table or item, in the shape of a request for a single item."""
    if "TableName" in request:
        yield request
    for each in request.get("TransactItems", ()):
        yield from each.values()
    for table, batch in request.get("RequestItems", {}).items():
        if isinstance(batch, dict):
            yield from ({**batch, "TableName": table, "Key": key} for key in batch["Keys"])
        else:
            yield from ({"TableName": table, **write} for writes in batch for write in writes.values())


def leading_keys(action: Document, partition_key: Callable[[str], str]) -> Iterator[str]:
    """The partition key's value, where the action names an item; a query's is in its expression, and none of ours queries."""
    key = partition_key(action["TableName"])
    item = action.get("Key") or action.get("Item") or {}
    if key in item:
        yield str(next(iter(item[key].values())))


def attributes_in(action: Document) -> Iterator[str]:
    """The top-level attributes that the action's parameters name, keys included."""
    names = action.get("ExpressionAttributeNames", {})
    yield from action.get("Key", ())
    yield from action.get("Item", ())
    for expression in EXPRESSIONS:
        for name in NAME.findall(action.get(expression, "")):
            if name.upper() not in KEYWORDS:
                yield names.get(name, name)


# CloudFormation


def configure_tables(handlers: dict[str, Handler], dynamodb: ModuleType) -> None:
    """Apply the settings of a table that ministack's CloudFormation ignores, when it is made and when it changes."""

    def apply(name: str, properties: Document) -> None:
        region = module("core.responses").get_region()
        replicas = [each for each in properties.get("Replicas", ()) if each["Region"] == region]
        settings = {**properties, **(replicas[0] if replicas else {})}
        if "TimeToLiveSpecification" in settings:
            specification = settings["TimeToLiveSpecification"]
            enabled = {**specification, "Enabled": is_true(specification["Enabled"])}
            succeeded(dynamodb._update_ttl({"TableName": name, "TimeToLiveSpecification": enabled}))
        if "PointInTimeRecoverySpecification" in settings:
            recovery = {
                "PointInTimeRecoveryEnabled": is_true(settings["PointInTimeRecoverySpecification"]["PointInTimeRecoveryEnabled"])
            }
            succeeded(dynamodb._update_continuous_backups({"TableName": name, "PointInTimeRecoverySpecification": recovery}))
        if "ContributorInsightsSpecification" in settings:
            action = "ENABLE" if is_true(settings["ContributorInsightsSpecification"]["Enabled"]) else "DISABLE"
            succeeded(dynamodb._update_contributor_insights({"TableName": name, "ContributorInsightsAction": action}))
        table = dynamodb._tables[name]
        table["DeletionProtectionEnabled"] = is_true(settings.get("DeletionProtectionEnabled", False))
        encryption = {**properties.get("SSESpecification", {}), **settings.get("SSESpecification", {})}
        described = {**encryption, "Enabled": is_true(encryption.get("SSEEnabled", False))}
        table["SSEDescription"] = dynamodb._sse_description_from_spec(described)

    for kind in ("AWS::DynamoDB::Table", "AWS::DynamoDB::GlobalTable"):
        handler = handlers[kind]
        wrap_create(handler, lambda name, properties, _: apply(name, properties))
        handler["update"] = updated_in_place(
            handler["update"], apply, with_logical_id=handler.get("update_with_logical_id", False)
        )
        handler["update_with_logical_id"] = True


def updated_in_place(
    update: Callable[..., Any], apply: Callable[[str, Document], None], *, with_logical_id: bool
) -> Callable[..., Any]:
    """An update that keeps the table.  ministack replaces an unnamed global table at each change, which AWS does not."""

    def updated(name: str, old: Document, new: Document, stack: str, logical_id: str) -> Any:
        if with_logical_id:
            answer = update(name, old, new, stack, logical_id)
        else:
            answer = update(name, {"TableName": name, **old}, {"TableName": name, **new}, stack)
        apply(answer[0], new)
        return answer

    return updated


def alarm_on_expressions(original: Callable[[str, Document], Document]) -> Callable[[str, Document], Document]:
    """Keep an alarm on an expression as one on a metric that nobody publishes."""

    def record(name: str, properties: Document) -> Document:
        if "Metrics" not in properties:
            return original(name, properties)
        expressions = [metric["Expression"] for metric in properties["Metrics"] if is_true(metric.get("ReturnData", True))]
        if len(expressions) != 1:
            raise ValueError("Exactly one of the metrics must be the one that is watched")
        plain = {key: value for key, value in properties.items() if key != "Metrics"}
        return original(name, {**plain, "Namespace": "Expressions", "MetricName": expressions[0]})

    return record


def make_routes(handlers: dict[str, Handler], apigateway: ModuleType) -> None:
    """Make the routes that an HTTP API's OpenAPI document describes, and make them anew when it changes."""

    def apply(api_id: str, properties: Document, old: Document) -> None:
        body = properties.get("Body") or {}
        if body == old.get("Body"):
            return
        apigateway._routes[api_id] = {}
        apigateway._integrations[api_id] = {}
        for path, methods in body.get("paths", {}).items():
            for method, operation in methods.items():
                make_route(api_id, path, method, operation)

    def make_route(api_id: str, path: str, method: str, operation: Document) -> None:
        described = operation["x-amazon-apigateway-integration"]
        function = re.fullmatch(r".*/functions/(.+)/invocations", described["uri"])
        if function is None:
            raise ValueError(f"{described['uri']} is no function")
        integration = {
            "integrationType": described["type"].upper(),
            "integrationUri": function[1],
            "payloadFormatVersion": described["payloadFormatVersion"],
        }
        integration_id = succeeded(apigateway._create_integration(api_id, integration))["integrationId"]
        verb = "ANY" if method == "x-amazon-apigateway-any-method" else method.upper()
        route = {
            "routeKey": "$default" if path == "/$default" else f"{verb} {path}",
            "target": f"integrations/{integration_id}",
            "authorizationType": authorization(operation),
        }
        succeeded(apigateway._create_route(api_id, route))

    handler = handlers["AWS::ApiGatewayV2::Api"]
    wrap_create(handler, lambda api_id, properties, _: apply(api_id, properties, {}))
    update = handler["update"]

    def updated(api_id: str, old: Document, new: Document, stack: str, logical_id: str) -> Any:
        answer = update(api_id, old, new, stack, logical_id)
        apply(answer[0], new, old)
        return answer

    handler["update"] = updated


def authorization(operation: Document) -> str:
    """Who may call the route."""
    schemes = {name for each in operation.get("security", ()) for name in each}
    if not schemes <= {"AWS_IAM"}:
        raise ValueError(f"Only IAM's authorizer is known here, not {sorted(schemes)}")
    return "AWS_IAM" if schemes else "NONE"


def check_readers_of_queues(handlers: dict[str, Handler], functions: ModuleType, iam: ModuleType) -> None:
    """Refuse to map a queue to a function whose role may not read it, as AWS does."""

    def check(_: str, properties: Document, attributes: Document) -> None:
        source = properties["EventSourceArn"]
        _, _, service, region, account, _ = source.split(":", 5)
        if service != "sqs":
            return
        name = properties["FunctionName"].split(":function:")[-1].split(":")[0]
        role = functions._functions[name]["config"]["Role"].rsplit("/", 1)[-1]
        policies = iam._gather_role_policies(role, account)
        for action in QUEUE_ACTIONS:
            request = iam.EvalContext(
                principal_arn=f"arn:aws:sts::{account}:assumed-role/{role}/{name}",
                principal_type="AssumedRole",
                principal_account=account,
                action=action,
                resource_arn=source,
                region=region,
            )
            if iam.evaluate(request, policies).decision != "Allow":
                raise ValueError(f"The provided execution role does not have permissions to call {action} on {source}")

    wrap_create(handlers["AWS::Lambda::EventSourceMapping"], check)


def wrap_create(handler: Handler, then: Callable[[str, Document, Document], None]) -> None:
    """Do *then* with what was created: its physical id, its properties and its attributes."""
    create = handler["create"]

    def created(logical_id: str, properties: Document, stack: str) -> Any:
        answer = create(logical_id, properties, stack)
        then(answer[0], properties, answer[1])
        return answer

    handler["create"] = created


def is_true(value: object) -> bool:
    """A boolean property, which comes as a text where it is a parameter's."""
    return str(value).lower() == "true"


def succeeded(answer: tuple[int, Document, bytes]) -> Document:
    """The document of an answer that is no error."""
    status, _, body = answer
    if status >= 300:
        raise ValueError(f"{status}: {body!r}")
    document: Document = json.loads(body)
    return document


# Functions


def artifact_that_is_there(original: Callable[..., bytes | None]) -> Callable[..., bytes]:
    """What was uploaded, or an error."""

    def fetched(bucket: str, key: str, version_id: str | None = None) -> bytes:
        artifact = original(bucket, key, version_id=version_id)
        if not artifact:
            raise ValueError(f"Error occurred while GetObject. S3 Error Code: NoSuchKey. {bucket}/{key}")
        return artifact

    return fetched


def run_functions_by(python: str, runtime: ModuleType) -> None:
    """Run Python functions by another interpreter, without what ministack is told through its environment."""
    if not os.access(python, os.X_OK):
        raise SystemExit(f"{python} is no interpreter")

    def make(original: Callable[[str], tuple[str, str]]) -> Callable[[str], tuple[str, str]]:
        def binary(name: str) -> tuple[str, str]:
            return (python, runtime._PYTHON_WORKER_SCRIPT) if name.startswith("python") else original(name)

        return binary

    replace(runtime, "_detect_runtime_binary", make)


class UnpackedOnce(ZipFile):
    """An archive that is unpacked into one folder for all; what is asked for are links to what is in it.

    As on Lambda, functions have nothing to write there.
    """

    _lock = Lock()

    def extractall(self, path: Any = None, members: Any = None, pwd: bytes | None = None) -> None:
        """As `ZipFile.extractall`, but for the links."""
        contents = sha256(repr([(each.filename, each.CRC) for each in self.infolist()]).encode()).hexdigest()
        folder = Path(tempfile.gettempdir()) / f"unpacked-{contents[:16]}"
        with self._lock:
            if not folder.exists():
                part = folder.with_suffix(".part")
                super().extractall(part, members, pwd)
                part.rename(folder)
        for entry in folder.iterdir():
            (Path(path) / entry.name).symlink_to(entry)


if __name__ == "__main__":
    main()
