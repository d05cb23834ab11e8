"""What each client makes of a server's errors, and what the store makes of that.

The texts are those of Valkey 9.1, and of GLIDE 2.6, seen on a real server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import redis
import redis.asyncio
import valkey
import valkey.asyncio
from redis._parsers import _RESP2Parser as RedisParser
from valkey._parsers import _RESP2Parser as ValkeyParser

from persistence._cache_errors import (
    CacheError,
    LockedError,
    UnacknowledgedError,
    explanation,
    is_demoted,
    is_lasting,
    is_not_now,
    is_passing,
    is_unanswered,
    is_unknown_script,
    is_wrong_type,
    without_arguments,
)

if TYPE_CHECKING:
    from collections.abc import Callable

# It is not installed with the lowest versions of the dependencies.
try:
    from glide_shared import exceptions as glide_errors
except ImportError:
    glide_errors = None

PREDICATES = (is_not_now, is_unanswered, is_passing, is_demoted, is_wrong_type, is_unknown_script)
BUSY = (is_not_now, is_passing)
LOST = (is_unanswered, is_passing)

#: (a server's error, what it is, a part of its explanation)
ANSWERS: list[tuple[str, tuple[Callable[[BaseException], bool], ...], str]] = [
    ("WRONGTYPE Operation against a key holding the wrong kind of value", (is_wrong_type,), ""),
    ("NOSCRIPT No matching script.", (is_unknown_script,), ""),
    ("READONLY You can't write against a read only replica.", (*BUSY, is_demoted), "is a replica"),
    ("OOM command not allowed when used memory > 'maxmemory'.", BUSY, "out of memory"),
    ("NOREPLICAS Not enough good replicas to write.", BUSY, ""),
    ("BUSY Valkey is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.", BUSY, ""),
    ("TRYAGAIN Multiple keys request during rehashing of slot", BUSY, ""),
    ("MISCONF Valkey is configured to save RDB snapshots", BUSY, ""),
    ("NOPERM User default has no permissions to run the 'eval' command", (), "needs the commands EVALSHA"),
    ("ERR ACL failure in script: User default has no permissions to run the 'get' command", (), "needs the commands EVALSHA"),
    ("ERR unknown command 'EVALSHA', with args beginning with: 'x' ", (), ""),
    ("ERR value is not an integer or out of range", (), ""),
    ("EXECABORT Transaction discarded because of previous errors.", (), ""),
]
PARSERS = [pytest.param(RedisParser, id="redis-py"), pytest.param(ValkeyParser, id="valkey-py")]


def seen(error: BaseException) -> tuple[Callable[[BaseException], bool], ...]:
    return tuple(each for each in PREDICATES if each(error))


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize(("text", "expected", "explained"), ANSWERS)
def test_a_servers_error_is_understood(
    parser: Any, text: str, expected: tuple[Callable[[BaseException], bool], ...], explained: str
) -> None:
    error = parser(65_536).parse_error(text)

    assert seen(error) == expected
    assert explained in explanation(error)
    assert bool(explained) is bool(explanation(error))


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize(
    "text",
    [
        "LOADING Valkey is loading the dataset in memory",
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        "MOVED 866 127.0.0.1:6379",
        "ASK 866 127.0.0.1:6379",
        "CLUSTERDOWN Hash slot not served",
    ],
)
def test_what_only_some_versions_have_a_class_for_passes_all_the_same(parser: Any, text: str) -> None:
    error = parser(65_536).parse_error(text)

    assert is_not_now(error)
    assert is_passing(error)
    assert not is_demoted(error)


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize(
    "text",
    [
        "NOAUTH Authentication required.",
        "WRONGPASS invalid username-password pair or user is disabled.",
        "ERR wrong number of arguments for 'auth' command",
    ],
)
def test_who_is_not_let_in_does_not_try_again(parser: Any, text: str) -> None:
    error = parser(65_536).parse_error(text)

    assert not is_passing(error)
    assert not is_not_now(error)


@pytest.mark.parametrize("package", [redis, valkey])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ConnectionError", LOST),
        ("TimeoutError", LOST),
        ("InvalidResponse", LOST),
        ("ClusterError", LOST),
        ("{}ClusterException", LOST),
        ("SlotNotCoveredError", LOST),
        ("AuthenticationError", (is_unanswered,)),
        ("AuthorizationError", (is_unanswered,)),
        ("DataError", ()),
    ],
)
def test_it_is_seen_that_no_answer_came(package: Any, name: str, expected: tuple[Any, ...]) -> None:
    error = getattr(package.exceptions, name.format(package.__name__.capitalize()))("Error 111 connecting to cache:6379.")

    assert seen(error) == expected
    assert bool(explanation(error)) is name.startswith("Auth")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionResetError("reset"), LOST),
        (BrokenPipeError("broken"), LOST),
        (TimeoutError("too late"), LOST),
        (LockedError("Another attempt is taking the key over"), (is_passing,)),
        (UnacknowledgedError("0 of 1 replicas have confirmed the write"), (is_passing,)),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), (is_wrong_type,)),
        (TypeError("READONLY is no option"), (is_demoted,)),
        (ValueError("LOADING"), ()),
        (Exception(), ()),
    ],
    ids=repr,
)
def test_other_errors_are_what_they_are(error: Exception, expected: tuple[Any, ...]) -> None:
    assert seen(error) == expected


BY_GLIDE = "An error was signalled by the server: - "
GLIDE_ERRORS = [
    ("RequestError", "WRONGTYPE: Operation against a key holding the wrong kind of value", (is_wrong_type,), ""),
    ("RequestError", "OOM: command not allowed when used memory > 'maxmemory'.", BUSY, "out of memory"),
    ("RequestError", "NOREPLICAS: Not enough good replicas to write.", BUSY, ""),
    ("RequestError", "BUSY: Valkey is busy running a script.", BUSY, ""),
    ("RequestError", f"{BY_GLIDE}ReadOnly: You can't write against a read only replica.", (*BUSY, is_demoted), "is a replica"),
    ("RequestError", f"{BY_GLIDE}MasterDown: Link with MASTER is down", BUSY, ""),
    ("RequestError", f"{BY_GLIDE}BusyLoadingError: Valkey is loading the dataset in memory", BUSY, ""),
    ("RequestError", f"{BY_GLIDE}ResponseError: unknown command 'NOSUCH', with args beginning with: 'x'", (), ""),
    ("RequestError", f"{BY_GLIDE}PermissionDenied: No permissions to access a key", (), "needs the commands EVALSHA"),
    ("CircuitBreakerError", "the circuit breaker is open", BUSY, ""),
    ("TimeoutError", "timed out", LOST, ""),
    ("ConnectionError", "connection closed", LOST, ""),
    ("ClosingError", "Received error for address `127.0.0.1:6379`: WRONGPASS: invalid username-password pair", LOST, ""),
    ("ConfigurationError", "not in a cluster", (), ""),
]


@pytest.mark.skipif(glide_errors is None, reason="valkey-glide is not installed")
@pytest.mark.parametrize(("name", "text", "expected", "explained"), GLIDE_ERRORS)
def test_an_error_of_glide_is_understood(name: str, text: str, expected: tuple[Any, ...], explained: str) -> None:
    error = getattr(glide_errors, name)(text)

    assert seen(error) == expected
    assert explained in explanation(error)
    assert bool(explained) is bool(explanation(error))


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize(
    ("text", "lasting"),
    [
        ("NOAUTH Authentication required.", True),
        ("WRONGPASS invalid username-password pair or user is disabled.", True),
        ("NOPERM User default has no permissions to run the 'eval' command", True),
        ("ERR unknown command 'EVALSHA'", True),
        ("MOVED 866 127.0.0.1:6379", True),
        ("ASK 866 127.0.0.1:6379", True),
        ("READONLY You can't write against a read only replica.", False),
        ("OOM command not allowed when used memory > 'maxmemory'.", False),
        ("LOADING Valkey is loading the dataset in memory", False),
        ("BUSY Valkey is busy running a script.", False),
    ],
)
def test_a_retry_does_not_help_where_the_servers_settings_refuse(parser: Any, text: str, lasting: bool) -> None:
    assert is_lasting(parser(65_536).parse_error(text)) is lasting


@pytest.mark.parametrize(
    ("error", "lasting"),
    [
        (redis.exceptions.TimeoutError("too late"), False),
        (redis.exceptions.AuthorizationError("no"), True),
        (CacheError("ResponseError: unknown command 'EVALSHA'"), True),
        (CacheError("RedisClusterException"), False),
        (UnacknowledgedError("0 of 1 replicas"), False),
        (OSError("reset"), False),
    ],
    ids=repr,
)
def test_a_retry_may_help_where_no_answer_came(error: Exception, lasting: bool) -> None:
    assert is_lasting(error) is lasting


@pytest.mark.parametrize("word", ["MOVED", "ASK"])
def test_a_server_of_a_cluster_is_told_from_others(word: str) -> None:
    error = ValkeyParser(65_536).parse_error(f"{word} 866 127.0.0.1:6379")

    assert 'mode="cluster"' in explanation(error)


REPEATING = [
    (
        redis.ResponseError("unknown command 'EVALSHA', with args beginning with: 'sha' '1' 'my-result' "),
        "ResponseError: unknown command 'EVALSHA'",
    ),
    (
        redis.exceptions.RedisClusterException("No targets were found to execute ('EVALSHA', 'my-result') command on"),
        "RedisClusterException",
    ),
    (
        valkey.ResponseError("unknown command `x`, with args beginning with: `a`,\n `my-result`"),
        "ResponseError: unknown command `x`",
    ),
]


@pytest.mark.parametrize(("error", "text"), REPEATING)
def test_an_error_that_repeats_what_was_sent_is_replaced(error: Exception, text: str) -> None:
    told = without_arguments(error)

    assert isinstance(told, CacheError)
    assert str(told) == text
    assert "my-result" not in repr(told)


def test_any_other_error_is_told_as_it_is() -> None:
    error = redis.ResponseError("value is not an integer or out of range")

    assert without_arguments(error) is error
