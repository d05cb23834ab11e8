"""template.yaml as values: as SAM translates it, with its conditions and parameters resolved, and its IAM statements by role.

Nothing is sent anywhere.  What only a deployment can tell stays in the syntax of `Fn::Sub`: `${OrdersQueue}` is what a Ref gives,
`${OrdersQueue.Arn}` an attribute.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from engines.lifeline import tied
from engines.repository import ROOT

from stack.emulator import find_python

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

Template: TypeAlias = dict[str, Any]
#: A right of a role or an endpoint: effect, action, resource, and the condition as `frozen` shows it.
Right: TypeAlias = tuple[str, str, str, str]

TEMPLATE: Final = ROOT / "template.yaml"
#: cfn-lint takes 5 s for all templates of a test session on a quiet machine with two cores, SAM's translator 4 s.  Less than a
#: test's timeout, so that the reason is heard.
PATIENCE_SECONDS: Final = 50
#: What a deployment would know.
PSEUDO_PARAMETERS: Final = {
    "AWS::AccountId": "123456789012",
    "AWS::Partition": "aws",
    "AWS::Region": "eu-west-1",
    "AWS::StackName": "a-stack",
    "AWS::URLSuffix": "amazonaws.com",
}
REFERENCE: Final = re.compile(r"\$\{(!?)([^}]+)}")

#: Runs in the environment of SAM: YAML or JSON templates of argument 1, translated if argument 2 says so, as JSON to argument 3.
#: Where a function's code is will be known when it is uploaded; the translator wants to know it now.
TRANSLATOR: Final = """
import json, sys
from samtranslator.translator.transform import transform
from samtranslator.yaml_helper import yaml_parse

class NoManagedPolicies:
    def load(self):
        return {}

def parsed(text):
    return json.loads(text) if text.startswith("{") else yaml_parse(text)  # YAML takes a second where JSON takes none

def translated(template):
    template.get("Globals", {}).get("Function", {}).pop("CodeUri", None)
    for resource in template["Resources"].values():
        if resource["Type"] == "AWS::Serverless::Function":
            resource["Properties"]["CodeUri"] = "s3://a-bucket/a-key"
    return transform(template, {}, NoManagedPolicies())

source, wanted, target = sys.argv[1:]
templates = [parsed(text) for text in json.load(open(source))]
json.dump([translated(template) for template in templates] if wanted == "translated" else templates, open(target, "w"))
"""


class ToolError(Exception):
    """A tool did not do what it was asked; the message is what it said."""


# ---- The tools ---------------------------------------------------------------------------------------------------------------


def load(path: Path = TEMPLATE) -> Template:
    """The template as it is written, with long intrinsic functions."""
    (template,) = _parsed([path.read_text(encoding="utf-8")], "as they are")
    return template


def translated(templates: Sequence[Template]) -> list[Template]:
    """The templates as SAM hands them to CloudFormation."""
    return _parsed([json.dumps(template) for template in templates], "translated")


def lint(templates: Mapping[str, Template | Path]) -> dict[str, list[str]]:
    """What cfn-lint finds in each template, its informational rules included: `E3002 'Tpye' was unexpected`."""
    with tempfile.TemporaryDirectory(prefix="cfn-lint-") as folder:
        paths = {
            name: _written(template, Path(folder) / f"{number}.json") for number, (name, template) in enumerate(templates.items())
        }
        report = Path(folder) / "report"
        options = ["--include-checks", "I", "--non-zero-exit-code", "none", "--format", "json", "--output-file", str(report)]
        _run(
            "-c", "from cfnlint import runner; runner.main()", *options, "--template", *map(str, paths.values()), cwd=Path(folder)
        )
        found = defaultdict(list)
        for finding in json.loads(report.read_text(encoding="utf-8")):
            place = ".".join(map(str, finding["Location"]["Path"]))
            found[finding["Filename"]].append(f"{finding['Rule']['Id']} {place}: {finding['Message']}")
    return {name: found[str(path)] for name, path in paths.items()}


def _written(template: Template | Path, path: Path) -> Path:
    if isinstance(template, Path):
        return template
    path.write_text(json.dumps(template, indent=1), encoding="utf-8")
    return path


def _parsed(texts: list[str], wanted: str) -> list[Template]:
    with tempfile.TemporaryDirectory(prefix="templates-") as folder:
        source, target = Path(folder) / "source", Path(folder) / "target"
        source.write_text(json.dumps(texts), encoding="utf-8")
        _run("-c", TRANSLATOR, str(source), wanted, str(target), cwd=Path(folder))
        templates: list[Template] = json.loads(target.read_text(encoding="utf-8"))
    return templates


def _run(*arguments: str, cwd: Path) -> None:
    """Run the Python of SAM's environment; it ends when this process does.

    Raises:
        EngineUnavailableError: the environment was not made.
        ToolError: it failed.
    """
    command = ["env", f"AWS_DEFAULT_REGION={PSEUDO_PARAMETERS['AWS::Region']}", str(find_python("sam")), "-I", *arguments]
    with (cwd / "output").open("w+", encoding="utf-8") as output, tied(command, cwd=cwd, output=output) as process:
        exit_code = process.wait(PATIENCE_SECONDS)
        output.seek(0)
        said = output.read()
    if exit_code:
        raise ToolError(said)


# ---- A stack: the template for one choice of parameters ----------------------------------------------------------------------


@dataclass(frozen=True)
class Stack:
    """What CloudFormation would make of a translated template, with these parameters."""

    parameters: dict[str, Any]
    resources: dict[str, dict[str, Any]]
    outputs: dict[str, Any]

    def of_type(self, *types: str) -> dict[str, dict[str, Any]]:
        """The properties of each resource of these types, by its name."""
        return {name: self.properties(name) for name, resource in self.resources.items() if resource["Type"] in types}

    def properties(self, name: str) -> dict[str, Any]:
        """Those of a resource."""
        properties: dict[str, Any] = self.resources[name].get("Properties", {})
        return properties

    def named(self, reference: str) -> str:
        """The resource that a reference names, whatever it takes of it; "" if there is none."""
        found = REFERENCE.fullmatch(reference)
        name = found[2].partition(".")[0] if found else ""
        return name if name in self.resources else ""

    @cached_property
    def statements(self) -> dict[str, list[Statement]]:
        """What each role is told that it may and may not do, by its own policies and by the stack's managed ones."""
        return {name: list(self._statements(properties)) for name, properties in self.of_type("AWS::IAM::Role").items()}

    def _statements(self, role: dict[str, Any]) -> Iterator[Statement]:
        attached = [self.properties(self.named(policy)) for policy in role.get("ManagedPolicyArns", ()) if self.named(policy)]
        for policy in [*role.get("Policies", ()), *attached]:
            yield from statements_of(policy["PolicyDocument"])


@dataclass(frozen=True)
class Statement:
    """A statement of an IAM policy."""

    sid: str
    effect: str
    actions: tuple[str, ...]
    resources: tuple[str, ...]
    condition: dict[str, dict[str, Any]]
    principal: Any = None

    @property
    def rights(self) -> set[Right]:
        """Each action on each resource."""
        return {(self.effect, action, resource, frozen(self.condition)) for action in self.actions for resource in self.resources}

    def applies_to(self, action: str, resource: str, context: Mapping[str, Collection[str]]) -> bool:
        """Whether the statement speaks of such a request, whose condition keys are in the context."""
        return (
            any(fnmatchcase(action, pattern) for pattern in self.actions)
            and any(pattern in ("*", resource) for pattern in self.resources)
            and all(
                OPERATORS[operator](set(context.get(key, ())), set(as_list(wanted)))
                for operator, keys in self.condition.items()
                for key, wanted in keys.items()
            )
        )


#: What a condition asks of the request's values for a key, none if the key is absent, and of the policy's.
#: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_condition-single-vs-multi-valued-context-keys.html
OPERATORS: Final[dict[str, Callable[[set[str], set[str]], bool]]] = {
    "StringEquals": lambda found, wanted: bool(found & wanted),
    "ArnEquals": lambda found, wanted: bool(found & wanted),
    "ForAllValues:StringEquals": lambda found, wanted: found <= wanted,
    "Null": lambda found, wanted: wanted == {"false" if found else "true"},
}


def is_allowed(statements: Sequence[Statement], action: str, resource: str, context: Mapping[str, Collection[str]]) -> bool:
    """Whether IAM allows the request: some statement does, and none denies it."""
    effects = {statement.effect for statement in statements if statement.applies_to(action, resource, context)}
    return effects == {"Allow"}


def statements_of(document: dict[str, Any]) -> list[Statement]:
    """The statements of a policy."""
    return [
        Statement(
            sid=statement.get("Sid", ""),
            effect=statement["Effect"],
            actions=tuple(as_list(statement.get("Action", ()))),
            resources=tuple(as_list(statement.get("Resource", ()))),
            condition=statement.get("Condition", {}),
            principal=statement.get("Principal"),
        )
        for statement in as_list(document["Statement"])
    ]


def frozen(condition: Mapping[str, Mapping[str, Any]]) -> str:
    """A condition as a text that is the same for the same condition."""
    plain = {operator: {key: sorted(as_list(wanted)) for key, wanted in keys.items()} for operator, keys in condition.items()}
    return json.dumps(plain, sort_keys=True) if plain else ""


def as_list(value: Any) -> list[Any]:
    """IAM takes one value for a list of one."""
    return list(value) if isinstance(value, list | tuple) else [value]


def resolve(template: Template, **parameters: Any) -> Stack:
    """The stack of a translated template; parameters that are left out have their defaults."""
    resolver = _Resolver(template, parameters)
    resources = {
        name: {key: resolver.value(value) for key, value in resource.items() if key not in ("Condition", "Metadata")}
        for name, resource in template["Resources"].items()
        if resolver.holds_for(resource)
    }
    outputs = {
        name: resolver.value(output["Value"]) for name, output in template["Outputs"].items() if resolver.holds_for(output)
    }
    return Stack(resolver.parameters, resources, outputs)


def refusals(template: Template, **parameters: Any) -> list[str]:
    """Why CloudFormation would not begin with these parameters: the rules that they break, and the parameters' own limits."""
    resolver = _Resolver(template, parameters)
    refused = [name for name, value in parameters.items() if not _is_permitted(template["Parameters"][name], str(value))]
    for rule in template.get("Rules", {}).values():
        if resolver.value(rule.get("RuleCondition", True)):
            refused += [each["AssertDescription"] for each in rule["Assertions"] if not resolver.value(each["Assert"])]
    return refused


def _is_permitted(parameter: dict[str, Any], value: str) -> bool:
    allowed = [str(each) for each in parameter.get("AllowedValues", [value])]
    return (
        value in allowed
        and re.fullmatch(parameter.get("AllowedPattern", ".*"), value) is not None
        and ("MinValue" not in parameter or int(value) >= parameter["MinValue"])
        and ("MaxValue" not in parameter or int(value) <= parameter["MaxValue"])
    )


class _Resolver:
    """Evaluates the intrinsic functions that the template uses; any other one is an error."""

    _NOTHING: Final = object()

    def __init__(self, template: Template, parameters: dict[str, Any]) -> None:
        unknown = parameters.keys() - template["Parameters"].keys()
        if unknown:
            raise ValueError(f"The template has no parameters {sorted(unknown)}")
        defaults = {name: parameter["Default"] for name, parameter in template["Parameters"].items() if "Default" in parameter}
        self.parameters = {**defaults, **parameters}
        self._values = {**PSEUDO_PARAMETERS, "AWS::NoValue": self._NOTHING, **self.parameters}
        self._conditions = template.get("Conditions", {})
        self._mappings = template.get("Mappings", {})
        self._functions: dict[str, Callable[[Any], Any]] = {
            "Ref": lambda name: self._values.get(name, f"${{{name}}}"),
            "Condition": lambda name: self.value(self._conditions[name]),
            "Fn::And": lambda each: all(map(self.value, each)),
            "Fn::Or": lambda each: any(map(self.value, each)),
            "Fn::Not": lambda only: not self.value(only[0]),
            "Fn::Equals": lambda two: str(self.value(two[0])) == str(self.value(two[1])),
            "Fn::Contains": lambda two: self.value(two[1]) in self.value(two[0]),
            "Fn::If": lambda three: self.value(three[1 if self.value(self._conditions[three[0]]) else 2]),
            "Fn::FindInMap": lambda keys: self._mappings[keys[0]][self.value(keys[1])][self.value(keys[2])],
            "Fn::GetAtt": lambda names: f"${{{'.'.join(names)}}}",
            "Fn::GetAZs": lambda region: "${AvailabilityZones}",
            "Fn::Cidr": lambda three: self._cidr(*map(self.value, three)),
            "Fn::Join": lambda two: self.value(two[0]).join(self.value(two[1])),
            "Fn::Select": lambda two: self._select(int(two[0]), self.value(two[1])),
            "Fn::Split": lambda two: self._split(two[0], self.value(two[1])),
            "Fn::Sub": lambda text: self._sub(*as_list(text)),
        }

    def holds_for(self, part: dict[str, Any]) -> bool:
        """Whether there is such a resource or output."""
        return bool(self.value(self._conditions[part["Condition"]])) if "Condition" in part else True

    def value(self, node: Any) -> Any:
        """The node without functions, and without what a function says is not there."""
        if isinstance(node, dict):
            name = next(iter(node)) if len(node) == 1 else ""
            # The condition of an IAM statement is no function.
            if name in self._functions and not (name == "Condition" and isinstance(node[name], dict)):
                return self._functions[name](node[name])
            if name.startswith("Fn::"):
                raise ValueError(f"The resolver does not know {name}")
            return {
                key: value for key, value in ((key, self.value(each)) for key, each in node.items()) if value is not self._NOTHING
            }
        if isinstance(node, list):
            return [value for value in map(self.value, node) if value is not self._NOTHING]
        return node

    def _sub(self, text: str, names: dict[str, Any] | None = None) -> str:
        known = {**self._values, **{name: self.value(value) for name, value in (names or {}).items()}}
        return REFERENCE.sub(lambda found: f"${{{found[2]}}}" if found[1] else str(known.get(found[2], found[0])), text)

    @staticmethod
    def _select(index: int, values: Any) -> Any:
        return f"{values[:-1]}[{index}]}}" if isinstance(values, str) else values[index]

    @staticmethod
    def _split(separator: str, text: str) -> Any:
        return f"{text[:-1]}.split({separator})}}" if text.startswith("${") else text.split(separator)

    @staticmethod
    def _cidr(block: str, count: int, host_bits: int) -> list[str]:
        subnets = ip_network(block).subnets(new_prefix=32 - int(host_bits))
        return [str(subnet) for _, subnet in zip(range(int(count)), subnets, strict=False)]
