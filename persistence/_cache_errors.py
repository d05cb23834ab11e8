"""What the errors of Valkey's and Redis's clients mean.  By values: no client's package is imported for it.

They are told apart by the names of their classes and by the codes in their texts, which redis-py, valkey-py and Valkey GLIDE
share: https://valkey.io/topics/protocol/#simple-errors.
"""

from __future__ import annotations

import re
from typing import Final

from persistence.exceptions import IdempotencyPersistenceLayerError, IdempotencyUnreachableError

#: Answers that mean "not now", as codes and as the names that clients make of them: the request was not applied.
#: A master that is loading, was demoted, or moved the key's slot; one that is out of memory, busy, or short of replicas.
NOT_NOW: Final = frozenset(
    {
        "ask",
        "busy",
        "busyloading",
        "circuitbreaker",
        "clusterdown",
        "loading",
        "masterdown",
        "maxconnections",
        "misconf",
        "moved",
        "noreplicas",
        "oom",
        "outofmemory",
        "readonly",
        "tryagain",
    }
)
#: Nobody knows whether the request was applied, or it was never sent.
NO_ANSWER: Final = frozenset(
    {"cluster", "closing", "connection", "invalidresponse", "redisclusterexception", "timeout", "valkeyclusterexception"}
)
#: Of a connection that came about, and was refused by what is configured.
NOT_ALLOWED: Final = frozenset({"authentication", "authenticationwrongnumberofargs", "authorization"})

#: The code at the start of a server's error, behind what GLIDE writes before it, and what Redis 6 does if a script met the error.
_CODE: Final = re.compile(
    r"(?:An error was signalled by the server: - )?(?:ResponseError: )?"
    r"(?:(?:ERR )?Error running script \(call to \w+\): (?:@user_script: ?\d+: )*)?-?([A-Za-z]+)"
)
#: How a server repeats the arguments of a command that it does not know, and a client those of one that it cannot send.
_ARGUMENTS: Final = re.compile(r"(?:, with args beginning with:|No targets were found to execute).*", re.DOTALL)


def _names(error: BaseException) -> set[str]:
    return {each.__name__.removesuffix("Error").lower() for each in type(error).__mro__}


def _code(error: BaseException) -> str:
    """The word that begins the text of a server's error, in small letters."""
    match = _CODE.match(str(error))
    return match[1].removesuffix("Error").lower() if match else ""


def is_not_now(error: BaseException) -> bool:
    """Whether the server refused the request for the moment, without having applied it."""
    if not _names(error).isdisjoint(NOT_NOW):
        return True
    return is_answer(error) and _code(error) in NOT_NOW


def is_answer(error: BaseException) -> bool:
    """Whether the server has said something, and nothing that has a class of its own beside these."""
    return not _names(error).isdisjoint({"response", "request"})


def is_unanswered(error: BaseException) -> bool:
    """Whether no answer came, or nobody was let in: the request may have been applied."""
    names = _names(error)
    return not names.isdisjoint(NO_ANSWER | NOT_ALLOWED)


def is_passing(error: BaseException) -> bool:
    """Whether the same request may be answered when it is sent again."""
    if isinstance(error, UnacknowledgedError | LockedError):
        return True
    return is_not_now(error) or (is_unanswered(error) and _names(error).isdisjoint(NOT_ALLOWED))


def is_demoted(error: BaseException) -> bool:
    """Whether the server is a master no longer, so that a new connection may find the one that is."""
    return "readonly" in _names(error) | {_code(error)}


def is_wrong_type(error: BaseException) -> bool:
    """Whether the value under the key is a list, a hash, or otherwise no text."""
    return isinstance(error, UnicodeDecodeError) or _code(error) == "wrongtype"


def is_unknown_script(error: BaseException) -> bool:
    """Whether the server has not seen the script, or has forgotten it."""
    return "noscript" in _names(error) | {_code(error)}


def is_lasting(error: BaseException) -> bool:
    """Whether a later call will meet the same error, because the server's settings or this client's do not fit.

    A client that is not for clusters is sent to another node for ever, although the server's answer sounds like a passing one.
    """
    names = _names(error)
    if (names | {_code(error)}) & {"ask", "moved"}:
        return True
    is_settled = is_answer(error) or not names.isdisjoint(NOT_ALLOWED) or str(error).startswith("ResponseError")
    return is_settled and not is_passing(error)


class CacheError(Exception):
    """A failure in place of the client's own error, whose text repeats what was sent."""


def without_arguments(error: Exception) -> Exception:
    """The error, or another in its place if it repeats what was sent: a record, and a result in it."""
    text = str(error)
    if not _ARGUMENTS.search(text):
        return error
    return CacheError(f"{type(error).__name__}: {_ARGUMENTS.sub('', text)}".rstrip(": "))


class FirstCallError(IdempotencyPersistenceLayerError, IdempotencyUnreachableError):
    """A verb failed because the server has never answered this store."""


class UnacknowledgedError(Exception):
    """Too few replicas have confirmed a write in time.  It was applied, and may be lost with its master."""


class LockedError(Exception):
    """Another attempt is taking the key over; only a client without scripts needs a lock for that."""


def explanation(error: BaseException) -> str:
    """What is probably the matter; "" if the error says enough."""
    words = _names(error) | {_code(error)}
    if words & {"ask", "moved"}:
        return 'The server is a node of a cluster: use mode="cluster", or a client for clusters.'
    if "readonly" in words:
        return "The server is a replica: use the address of the master, which follows a failover."
    if words & {"oom", "outofmemory"}:
        return "The server is out of memory, and its maxmemory-policy evicts nothing that would make room."
    if words & NOT_ALLOWED:
        return "The server demands a username and a password, or refuses the given ones."
    if words & {"noperm", "nopermission", "permissiondenied", "acl"}:
        return "The user needs the commands EVALSHA, EVAL, GET, SET and DEL on the keys of this store."
    return ""
