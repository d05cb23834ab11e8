"""What is kept in Valkey or Redis under a key, and the Lua scripts that decide over it.  Values only.

A record is one JSON text under its idempotency key, with Powertools' names, so that either library reads the other's.  Each
script is one operation of `rules`, decided and written by the server at once: https://valkey.io/topics/eval-intro/.  The present
and the ends are arguments; the key's own expiry (PX) only collects garbage, and is never before the record's.

A result is put into the text as it is, and no script that writes one reads it.  Other attributes pass through cjson, which keeps
texts and whole numbers of up to 14 digits; an empty list in somebody else's attribute would become an empty object.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from persistence.datarecord import DataRecord
from persistence.exceptions import IdempotencyPersistenceConsistencyError
from persistence.rules import is_too_old

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: How much longer than its record a key is kept: other machines, whose clocks are behind, may still need it.
KEPT_LONGER_MS: Final = 60_000

#: What scripts answer, besides the text of the record that was found.  The first three have written.
GRANTED, REPEATED, STORED, REFUSED, FENCED, FOREIGN = "granted", "repeated", "stored", "refused", "fenced", "foreign"
#: To a release: there was no record.
GONE: Final = "gone"


class Script(NamedTuple):
    """A Lua script, and the name under which a server that has seen it runs it."""

    text: str
    sha1: str


#: Arguments 1 to 5 of every script are attribute names.  A value that is no record is never written over.
_PRELUDE: Final = """
local key = KEYS[1]
local status, expiry, lease, owner, generation = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]

local function is_sound(record)
  if type(record) ~= 'table' then return false end
  for name, kind in pairs({[expiry] = 'number', [lease] = 'number', [owner] = 'string', [generation] = 'number'}) do
    if record[name] == cjson.null then record[name] = nil end
    if record[name] ~= nil and type(record[name]) ~= kind then return false end
    if kind == 'number' and record[name] and not (math.abs(record[name]) < math.huge) then return false end
  end
  return type(record[status]) == 'string'
end

local text = redis.call('GET', key)
local record
if text then
  local is_json, value = pcall(cjson.decode, text)
  if not is_json or not is_sound(value) then return {'foreign'} end
  record = value
end

local function is_in_progress() return record[status] == 'INPROGRESS' end

local function is_expired(now_ms) return record[expiry] ~= nil and record[expiry] < math.floor(now_ms / 1000) end

local function is_past_lease(now_ms)
  if record[lease] == nil then return is_expired(now_ms) end
  return record[lease] < now_ms
end

local function put(new, kept_ms)
  if kept_ms == '' then redis.call('SET', key, new) else redis.call('SET', key, new, 'PX', kept_ms) end
end
"""

_READ: Final = """
return {'stored', text or ''}
"""

_CLAIM: Final = """
local now_ms, takes_over, token = tonumber(ARGV[6]), ARGV[7] == '1', ARGV[8]
local offer, number, kept_ms = ARGV[9], tonumber(ARGV[10]), ARGV[11]
local is_too_old = ARGV[15] == '1'

local function is_claimable()
  if not is_in_progress() then return is_expired(now_ms) and not is_too_old end
  return takes_over and is_past_lease(now_ms)
end

if not record and is_too_old then return {'refused', ''} end

local took_over = '0'
if record then
  for place = 12, 14 do -- names of texts that no other script looks at
    local value = record[ARGV[place]]
    if value ~= nil and value ~= cjson.null and type(value) ~= 'string' then return {'foreign'} end
  end
  if not is_claimable() then
    if record[owner] ~= token or not is_in_progress() then return {'refused', text} end
    -- Written again as it is, because replicas may be waited for, and WAIT counts what this connection has written.
    redis.call('SET', key, text, 'KEEPTTL')
    return {'repeated', text}
  end
  number = (record[generation] or 0) + 1
  if is_in_progress() then took_over = '1' end
end
number = string.format('%d', number)
put(string.sub(offer, 1, -2) .. ',' .. cjson.encode(generation) .. ':' .. number .. '}', kept_ms)
return {'granted', number, took_over}
"""

_COMPLETE: Final = """
local token, fields, result_name, result, not_kept, kept_ms = ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10], ARGV[11]

if record and record[owner] ~= token then return {'fenced', text} end
record = record or {}
record[result_name], record[not_kept] = nil, nil
for name, value in pairs(cjson.decode(fields)) do record[name] = value end
local new = cjson.encode(record)
if result ~= '' then new = string.sub(new, 1, -2) .. ',' .. cjson.encode(result_name) .. ':' .. result .. '}' end
put(new, kept_ms)
return {'stored'}
"""

_RENEW: Final = """
local token, lease_end_ms, expiry_s, kept_ms = ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8]), ARGV[9]

if not record or record[owner] ~= token or not is_in_progress() then return {'fenced', text or ''} end
if (record[lease] or 0) > lease_end_ms then return {'stored'} end -- renewed since by a later request
record[lease], record[expiry] = lease_end_ms, expiry_s
put(cjson.encode(record), kept_ms)
return {'stored'}
"""

_RELEASE: Final = """
local token, now_ms = ARGV[6], tonumber(ARGV[7]) -- without a time, a live lease does not matter

if not record then return {'gone'} end
if token == '' then token = nil end -- as in a record of Powertools
if record[owner] ~= token or not is_in_progress() then return {'fenced', text} end
if now_ms and not is_past_lease(now_ms) then return {'fenced', text} end
redis.call('DEL', key)
return {'stored'}
"""


def _script(body: str) -> Script:
    text = _PRELUDE + body
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


READ: Final = _script(_READ)
CLAIM: Final = _script(_CLAIM)
COMPLETE: Final = _script(_COMPLETE)
RENEW: Final = _script(_RENEW)
RELEASE: Final = _script(_RELEASE)


class Reply(NamedTuple):
    """A script's answer: which, and what else it said."""

    kind: str
    rest: tuple[str, ...] = ()


def kept_ms(record: DataRecord, now_ms: int) -> int | None:
    """How long the server keeps the record's key, in milliseconds: beyond its expiry and its lease.  None: for ever."""
    if record.expiry_timestamp is None:
        return None
    end_ms = max((record.expiry_timestamp + 1) * 1000, record.in_progress_expiry_timestamp or 0)
    return max(0, end_ms - now_ms) + KEPT_LONGER_MS


class TextFormat:
    """Records as JSON texts, under the given attribute names.

    Raises:
        ValueError: a name is empty or used twice.
    """

    def __init__(
        self,
        *,
        expiry_attr: str,
        in_progress_expiry_attr: str,
        status_attr: str,
        data_attr: str,
        validation_key_attr: str,
        owner_token_attr: str,
        generation_attr: str,
        holder_attr: str,
        result_not_kept_attr: str,
    ) -> None:
        self.expiry = expiry_attr
        self.lease = in_progress_expiry_attr
        self.status = status_attr
        self.data = data_attr
        self.validation = validation_key_attr
        self.owner = owner_token_attr
        self.generation = generation_attr
        self.holder = holder_attr
        self.not_kept = result_not_kept_attr
        names = list(self.__dict__.values())
        if "" in names or len(set(names)) < len(names):
            raise ValueError(f"Each attribute needs a name of its own: {', '.join(map(repr, names))}")
        self._names = (self.status, self.expiry, self.lease, self.owner, self.generation)

    def text(self, record: DataRecord) -> str:
        """The record whole, as it is kept."""
        fields = self._fields(record) | {self.generation: record.generation}
        if record.response_data:
            fields[self.data] = record.response_data
        return _json(fields)

    def record(self, idempotency_key: str, text: bytes | str) -> DataRecord:
        """The record that is kept.

        Raises:
            IdempotencyPersistenceConsistencyError: it is none.
        """
        try:
            # Decoded here, because `json` would take UTF-16, too.
            fields = json.loads(text.decode() if isinstance(text, bytes) else text)
        except (ValueError, RecursionError):  # undecodable bytes included
            fields = None
        if not isinstance(fields, dict):
            raise foreign(idempotency_key)
        status = fields.get(self.status)
        numbers = [fields.get(name) for name in (self.expiry, self.lease, self.generation)]
        texts = [fields.get(name) for name in (self.data, self.validation, self.owner, self.holder)]
        if not isinstance(status, str) or not all(map(_is_number, numbers)) or not all(map(_is_text, texts)):
            raise foreign(idempotency_key)
        expiry_s, lease_end_ms, generation = (None if number is None else int(number) for number in numbers)
        data, payload_hash, owner_token, holder = (each or "" for each in texts)
        return DataRecord(
            idempotency_key,
            status,
            expiry_s,
            lease_end_ms,
            data,
            payload_hash,
            owner_token=owner_token,
            generation=generation or 0,
            holder=holder,
            result_kept=not fields.get(self.not_kept),
        )

    def read(self) -> tuple[Script, list[str]]:
        """The script and its arguments that read the record: a script, because a client may send a plain GET to a replica."""
        return READ, [*self._names]

    def claim(self, offer: DataRecord, now_ms: int) -> tuple[Script, list[str]]:
        """The script and its arguments that claim the key for the offer's owner."""
        return CLAIM, [
            *self._names,
            str(now_ms),
            "1" if offer.takes_over_orphans else "0",
            offer.owner_token,
            _json(self._fields(offer)),
            str(offer.generation),
            _number(kept_ms(offer, now_ms)),
            self.data,
            self.validation,
            self.holder,
            "1" if is_too_old(offer.fresh_until_ms, now_ms) else "0",
        ]

    def complete(self, record: DataRecord, now_ms: int) -> tuple[Script, list[str]]:
        """The script and its arguments that store the holder's result."""
        return COMPLETE, [
            *self._names,
            record.owner_token,
            _json(self._fields(record) | {self.generation: record.generation}),
            self.data,
            _json(record.response_data) if record.response_data else "",
            self.not_kept,
            _number(kept_ms(record, now_ms)),
        ]

    def renew(self, record: DataRecord, now_ms: int) -> tuple[Script, list[str]]:
        """The script and its arguments that move the holder's lease end."""
        return RENEW, [
            *self._names,
            record.owner_token,
            _number(record.in_progress_expiry_timestamp),
            _number(record.expiry_timestamp),
            _number(kept_ms(record, now_ms)),
        ]

    def release(self, record: DataRecord, now_ms: int | None = None) -> tuple[Script, list[str]]:
        """The script and its arguments that give the key up; with *now_ms*, only if the lease has ended."""
        return RELEASE, [*self._names, record.owner_token, _number(now_ms)]

    def _fields(self, record: DataRecord) -> dict[str, Any]:
        """All but the result and the generation; what is not there is left out, so that what is stored stays."""
        fields: dict[str, Any] = {self.status: str(record.stored_status)}
        if record.expiry_timestamp is not None:
            fields[self.expiry] = record.expiry_timestamp
        if record.in_progress_expiry_timestamp is not None:
            fields[self.lease] = record.in_progress_expiry_timestamp
        if record.payload_hash:
            fields[self.validation] = record.payload_hash
        if record.owner_token:
            fields[self.owner] = record.owner_token
        if record.holder:
            fields[self.holder] = record.holder
        if not record.result_kept:
            fields[self.not_kept] = True
        return fields


def reply(idempotency_key: str, answer: Sequence[Any]) -> Reply:
    """What a script answered.

    Raises:
        IdempotencyPersistenceConsistencyError: the value under the key is no record.
    """
    try:
        kind, *rest = map(_text, answer)
    except UnicodeDecodeError:
        raise foreign(idempotency_key) from None
    if kind == FOREIGN:
        raise foreign(idempotency_key)
    return Reply(kind, tuple(rest))


def has_written(answer: Sequence[Any]) -> bool:
    """Whether the script that answered so has written, and its copies may be waited for."""
    return _text(answer[0]) in (GRANTED, REPEATED, STORED)


def granted(offer: DataRecord, said: Reply) -> DataRecord:
    """The offer as the script has granted it."""
    generation, took_over = said.rest
    return offer.replace(generation=int(generation), took_over=took_over == "1")


def foreign(idempotency_key: str) -> IdempotencyPersistenceConsistencyError:
    """The error of a value that no idempotency library has written.  It says nothing of the value."""
    return IdempotencyPersistenceConsistencyError(
        f"The value under {idempotency_key} is no idempotency record. It was left as it is; delete it, or give this store a "
        "database or a key prefix of its own"
    )


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value))


def _is_text(value: object) -> bool:
    return value is None or isinstance(value, str)


def _number(value: int | None) -> str:
    return "" if value is None else str(value)


def _json(value: Mapping[str, Any] | str) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
