"""The real `sam`, against an emulator: nothing of this machine's AWS settings is read, and nothing is sent elsewhere."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from engines.lifeline import tied

from stack.emulator import HOST, REGION, ROOT_KEY, find_python

if TYPE_CHECKING:
    from stack.emulator import Emulator

#: A command takes 3 to 5 s on a quiet machine with two cores.
PATIENCE_SECONDS: Final = 240
#: It looks for a newer version of itself, elsewhere, when it last did so more than a week ago: that was in the year 2100.
SETTINGS: Final = {"lastVersionCheck": 4_102_444_800}


class SamError(Exception):
    """A command failed; the message is what it said."""


def find_sam() -> list[str]:
    """The command.

    Raises:
        EngineUnavailableError: it is not on this machine.
    """
    return [str(find_python("sam")), "-I", "-m", "samcli"]


def build(template: Path, into: Path) -> Path:
    """Build the functions into a folder, with the template beside them.  Returns that template."""
    run(None, "build", "--template-file", str(template), "--build-dir", str(into), cwd=template.parent)
    return into / "template.yaml"


def package(emulator: Emulator, built: Path, into: Path) -> Path:
    """Upload the built functions.  Returns the template that names them, in JSON and with long intrinsic functions.

    What is deployed from it, changed or not, needs no upload any more, and its stacks share the artifacts.
    """
    packaged = into / "packaged.json"
    written = ("--output-template-file", str(packaged), "--use-json", "--no-progressbar", "--resolve-s3")
    run(emulator, "package", "--template-file", str(built), *written, cwd=into)
    return packaged


def deploy(emulator: Emulator, template: Path, stack_name: str, **parameters: str) -> None:
    """Create or update a stack, and wait until that is done.

    Raises:
        SamError: CloudFormation refused it or rolled it back.
    """
    overrides = ["--parameter-overrides", *(f"{name}={value}" for name, value in parameters.items())] if parameters else []
    options = ("--resolve-s3", "--no-progressbar", "--no-confirm-changeset", "--capabilities", "CAPABILITY_IAM")
    named = ("--stack-name", stack_name, "--template-file", str(template))
    run(emulator, "deploy", *named, *options, *overrides, cwd=template.parent)


def delete(emulator: Emulator, stack_name: str, cwd: Path) -> None:
    """Delete a stack, and wait until that is done.

    Raises:
        SamError: CloudFormation could not.
    """
    run(emulator, "delete", "--stack-name", stack_name, "--no-prompts", "--region", REGION, cwd=cwd)


def run(emulator: Emulator | None, *arguments: str, cwd: Path) -> str:
    """Run a command in a folder, whose samconfig.toml is read; it ends when this process does.  Returns what it said.

    Raises:
        SamError: it failed.
        EngineUnavailableError: sam is not on this machine.
    """
    with tempfile.TemporaryDirectory(prefix="sam-home-") as home:
        (Path(home) / ".aws-sam").mkdir()
        (Path(home) / ".aws-sam" / "metadata.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
        settings = [f"{name}={value}" for name, value in _environment(emulator, home).items()]
        command = ["env", "-i", *settings, *find_sam(), *arguments]
        with (Path(home) / "output").open("w+", encoding="utf-8") as output, tied(command, cwd=cwd, output=output) as process:
            exit_code = process.wait(PATIENCE_SECONDS)
            output.seek(0)
            said = output.read()
    if exit_code:
        raise SamError(f"`sam {' '.join(arguments)}` failed:\n{said}")
    return said


def _environment(emulator: Emulator | None, home: str) -> dict[str, str]:
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": home,
        "AWS_ACCESS_KEY_ID": ROOT_KEY,
        "AWS_SECRET_ACCESS_KEY": ROOT_KEY,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": f"{HOST},localhost",
        "SAM_CLI_TELEMETRY": "0",
        "SAM_CLI_POLL_DELAY": "1",
    }
    return environment | ({"AWS_ENDPOINT_URL": emulator.endpoint} if emulator else {})
