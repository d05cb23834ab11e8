"""Records as texts, and the arguments of each script.  What the scripts decide is tested on real servers."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from doubles import START_MS
from hypothesis import given, settings
from hypothesis import strategies as st

from persistence._cache_scripts import (
    CLAIM,
    COMPLETE,
    KEPT_LONGER_MS,
    READ,
    RELEASE,
    RENEW,
    Reply,
    TextFormat,
    foreign,
    granted,
    has_written,
    kept_ms,
    reply,
)
from persistence.datarecord import DataRecord
from persistence.exceptions import IdempotencyPersistenceConsistencyError

KEY = "payments#5f4dcc3b"
NAMES = {
    "expiry_attr": "expiration",
    "in_progress_expiry_attr": "in_progress_expiration",
    "status_attr": "status",
    "data_attr": "data",
    "validation_key_attr": "validation",
    "owner_token_attr": "owner_token",
    "generation_attr": "generation",
    "holder_attr": "holder",
    "result_not_kept_attr": "result_not_kept",
}
#: Names that would need care in a pattern, in Lua or in JSON.
ODD_NAMES = {
    "expiry_attr": "ttl",
    "in_progress_expiry_attr": "lease.end",
    "status_attr": "日本",
    "data_attr": '"data"',
    "validation_key_attr": "%d",
    "owner_token_attr": "KEYS[1]",
    "generation_attr": "\\",
    "holder_attr": " ",
    "result_not_kept_attr": "0",
}
TEXTS = TextFormat(**NAMES)
ODD = TextFormat(**ODD_NAMES)

OFFER = DataRecord(
    KEY,
    "INPROGRESS",
    1_800_003_600,
    1_800_000_060_250,
    payload_hash="hash",
    owner_token="token",
    generation=1,
    holder="request-1",
)
DONE = OFFER.replace(status="COMPLETED", response_data='{"a": 1}')
#: What the first five arguments of each script name.
FIRST = ["status", "expiration", "in_progress_expiration", "owner_token", "generation"]

#: All that UTF-8 can encode.
texts = st.text(st.characters(exclude_categories=["Cs"]))
records = st.builds(
    DataRecord,
    st.just(KEY),
    st.sampled_from(["INPROGRESS", "COMPLETED", "PAUSED", ""]),
    st.none() | st.integers(0, 10**12),
    st.none() | st.integers(0, 10**14),
    texts,
    texts,
    owner_token=texts,
    generation=st.integers(0, 10**9),
    holder=texts,
    result_kept=st.booleans(),
)


# Records as texts


@pytest.mark.parametrize("form", [TEXTS, ODD], ids=["default names", "odd names"])
@given(record=records)
@settings(max_examples=100, derandomize=True, deadline=None)
def test_a_record_reads_as_it_was_written(form: TextFormat, record: DataRecord) -> None:
    text = form.text(record)

    assert form.record(KEY, text) == form.record(KEY, text.encode()) == record


def test_a_text_has_powertools_names_and_ours() -> None:
    assert json.loads(TEXTS.text(DONE.replace(result_kept=False))) == {
        "status": "COMPLETED",
        "expiration": 1_800_003_600,
        "in_progress_expiration": 1_800_000_060_250,
        "data": '{"a": 1}',
        "validation": "hash",
        "owner_token": "token",
        "generation": 1,
        "holder": "request-1",
        "result_not_kept": True,
    }


def test_a_text_leaves_out_what_is_not_there() -> None:
    assert json.loads(TEXTS.text(DataRecord(KEY, "INPROGRESS"))) == {"status": "INPROGRESS", "generation": 0}


def test_what_concerns_only_the_call_is_not_written() -> None:
    carried = OFFER.replace(deadline_ms=START_MS, takes_over_orphans=False, supersedes=3, took_over=True, fresh_until_ms=START_MS)

    assert TEXTS.text(carried) == TEXTS.text(OFFER)


def test_a_result_stands_in_the_text_as_it_is() -> None:
    """A script can then put it there without reading it."""
    result = '{"text": "日本 🧾"}'

    assert '"data":"{\\"text\\": \\"日本 🧾\\"}"' in TEXTS.text(DONE.replace(response_data=result))


@pytest.mark.parametrize("name", NAMES)
def test_an_attribute_without_a_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="Each attribute needs a name of its own"):
        TextFormat(**{**NAMES, name: ""})


def test_a_name_for_two_attributes_is_refused_and_shown() -> None:
    with pytest.raises(ValueError, match="'data'.*'data'"):
        TextFormat(**{**NAMES, "holder_attr": "data"})


# Records of Powertools, as its CachePersistenceLayer writes them


@pytest.mark.parametrize(
    ("text", "record"),
    [
        ('{"status": "INPROGRESS", "expiration": 1800003600}', DataRecord(KEY, "INPROGRESS", 1_800_003_600)),
        (
            '{"status": "INPROGRESS", "expiration": 1800003600, "in_progress_expiration": 1800000060250, "validation": "h"}',
            DataRecord(KEY, "INPROGRESS", 1_800_003_600, 1_800_000_060_250, payload_hash="h"),
        ),
        (
            '{"data": "{\\"a\\": 1}", "status": "COMPLETED", "expiration": 1800003600}',
            DataRecord(KEY, "COMPLETED", 1_800_003_600, response_data='{"a": 1}'),
        ),
        (
            '{"data": "null", "status": "COMPLETED", "expiration": 1800003600, "validation": "h"}',
            DataRecord(KEY, "COMPLETED", 1_800_003_600, response_data="null", payload_hash="h"),
        ),
        (
            '{"status": "INPROGRESS", "expiration": null, "in_progress_expiration": null, "validation": null}',
            DataRecord(KEY, "INPROGRESS"),
        ),
        (
            '{"status": "INPROGRESS", "expiration": 1800003600.0, "in_progress_expiration": 1800000060250.7}',
            DataRecord(KEY, "INPROGRESS", 1_800_003_600, 1_800_000_060_250),
        ),
    ],
    ids=["running", "running until its lease's end", "done", "done and validated", "nulls", "fractions"],
)
def test_a_record_of_powertools_has_no_token_and_generation_0(text: str, record: DataRecord) -> None:
    assert TEXTS.record(KEY, text) == TEXTS.record(KEY, text.encode()) == record
    assert (record.owner_token, record.generation) == ("", 0)


def test_attributes_of_others_are_not_looked_at() -> None:
    text = '{"status": "COMPLETED", "expiration": 1800003600, "x": [{}], "y": null}'

    assert TEXTS.record(KEY, text) == DataRecord(KEY, "COMPLETED", 1_800_003_600)


# Values that are no record


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"secret",
        b"{",
        b"\xff\xfe\x00",
        b"null",
        b"17",
        b'"secret"',
        b"[]",
        b'[{"status": "COMPLETED"}]',
        b"{}",
        b'{"expiration": 1800003600}',
        b'{"status": null}',
        b'{"status": 1}',
        b'{"status": ["COMPLETED"]}',
        b'{"record": {"status": "COMPLETED"}}',
        b'{"status": "COMPLETED", "expiration": "1800003600"}',
        b'{"status": "COMPLETED", "expiration": true}',
        b'{"status": "COMPLETED", "expiration": {}}',
        b'{"status": "INPROGRESS", "in_progress_expiration": "1800000060250"}',
        b'{"status": "INPROGRESS", "in_progress_expiration": false}',
        b'{"status": "INPROGRESS", "generation": "1"}',
        b'{"status": "COMPLETED", "data": 1}',
        b'{"status": "COMPLETED", "data": {"a": 1}}',
        b'{"status": "COMPLETED", "validation": ["h"]}',
        b'{"status": "COMPLETED", "owner_token": true}',
        b'{"status": "COMPLETED", "holder": 1.5}',
        b'{"status": "COMPLETED", "data": 0}',
        b'{"status": "COMPLETED", "validation": []}',
        b'{"status": "COMPLETED", "owner_token": false}',
        b'{"status": "COMPLETED", "expiration": NaN}',
        b'{"status": "COMPLETED", "expiration": 1e999}',
        b'{"status": "INPROGRESS", "in_progress_expiration": -Infinity}',
        b'{"status": "COMPLETED", "data": "\xff"}',
        b'\xef\xbb\xbf{"status": "COMPLETED"}',
        '{"status": "COMPLETED"}'.encode("utf-16"),
        b"[" * 100_000,
    ],
    ids=lambda text: repr(text[:80]),
)
def test_a_value_that_is_no_record_is_an_error_that_names_the_key_and_shows_nothing_of_the_value(text: bytes) -> None:
    with pytest.raises(IdempotencyPersistenceConsistencyError) as error:
        TEXTS.record(KEY, text)

    assert KEY in str(error.value)
    assert "secret" not in str(error.value)
    assert error.value.__cause__ is None


# How long a key is kept


def test_a_record_without_expiry_is_kept_for_ever() -> None:
    assert kept_ms(OFFER.replace(expiry_timestamp=None), START_MS) is None


@pytest.mark.parametrize(
    ("expiry_s", "lease_end_ms", "now_ms", "expected"),
    [
        (1_000, None, 999_000, 2_000),
        (1_000, None, 1_000_999, 1),
        (1_000, None, 1_001_000, 0),
        (1_000, None, 9_999_999, 0),
        (1_000, 1_000_999, 1_000_000, 1_000),
        (1_000, 1_001_000, 1_000_000, 1_000),
        (1_000, 1_001_001, 1_000_000, 1_001),
        (0, 0, 0, 1_000),
    ],
)
def test_a_key_is_kept_a_minute_beyond_the_whole_second_of_its_expiry_and_beyond_its_lease(
    expiry_s: int, lease_end_ms: int | None, now_ms: int, expected: int
) -> None:
    record = OFFER.replace(expiry_timestamp=expiry_s, in_progress_expiry_timestamp=lease_end_ms)

    assert kept_ms(record, now_ms) == expected + KEPT_LONGER_MS


@given(record=records, now_ms=st.integers(0, 10**14))
@settings(max_examples=100, derandomize=True, deadline=None)
def test_no_key_is_gone_before_its_record_or_its_lease_has_ended(record: DataRecord, now_ms: int) -> None:
    kept = kept_ms(record, now_ms)

    if kept is not None:
        assert kept > 0
        assert now_ms + kept > (record.expiry_timestamp or 0) * 1000 + 999
        assert now_ms + kept > (record.in_progress_expiry_timestamp or 0)


# Scripts and their arguments


@pytest.mark.parametrize("script", [READ, CLAIM, COMPLETE, RENEW, RELEASE])
def test_a_script_is_known_by_the_hash_of_its_text(script: Any) -> None:
    """As `SCRIPT LOAD` names it."""
    assert script.sha1 == hashlib.sha1(script.text.encode()).hexdigest()


def test_a_read_names_the_attributes() -> None:
    assert TEXTS.read() == (READ, FIRST)


def test_odd_names_are_arguments_as_they_are() -> None:
    assert ODD.read() == (READ, ["日本", "ttl", "lease.end", "KEYS[1]", "\\"])


@pytest.mark.parametrize(("takes_over_orphans", "said"), [(True, "1"), (False, "0")])
def test_a_claim_sends_the_present_and_the_offer_without_its_generation(takes_over_orphans: bool, said: str) -> None:
    script, arguments = TEXTS.claim(OFFER.replace(takes_over_orphans=takes_over_orphans), START_MS)

    first, (now_ms, takes_over, token, offer, generation, kept), texts_only = arguments[:5], arguments[5:11], arguments[11:14]
    assert (script, first) == (CLAIM, FIRST)
    assert (now_ms, takes_over, token, generation) == (str(START_MS), said, "token", "1")
    assert texts_only == ["data", "validation", "holder"]
    assert kept == str(kept_ms(OFFER, START_MS))
    assert json.loads(offer) == {
        "status": "INPROGRESS",
        "expiration": 1_800_003_600,
        "in_progress_expiration": 1_800_000_060_250,
        "validation": "hash",
        "owner_token": "token",
        "holder": "request-1",
    }


@pytest.mark.parametrize(("fresh_until_ms", "said"), [(None, "0"), (START_MS, "0"), (START_MS - 1, "1")])
def test_a_claim_says_whether_its_request_is_too_old(fresh_until_ms: int | None, said: str) -> None:
    _, arguments = TEXTS.claim(OFFER.replace(fresh_until_ms=fresh_until_ms), START_MS)

    assert arguments[14:] == [said]


def test_a_claim_without_expiry_sends_no_time_to_live() -> None:
    _, arguments = TEXTS.claim(OFFER.replace(expiry_timestamp=None), START_MS)

    assert arguments[10] == ""


def test_a_completion_sends_its_result_beside_the_other_attributes() -> None:
    script, arguments = TEXTS.complete(DONE, START_MS)

    *first, token, fields, result_name, result, not_kept, kept = arguments
    assert (script, first) == (COMPLETE, FIRST)
    assert (token, result_name, not_kept) == ("token", "data", "result_not_kept")
    assert (json.loads(result), kept) == ('{"a": 1}', str(kept_ms(DONE, START_MS)))
    assert json.loads(fields) == {
        "status": "COMPLETED",
        "expiration": 1_800_003_600,
        "in_progress_expiration": 1_800_000_060_250,
        "validation": "hash",
        "owner_token": "token",
        "generation": 1,
        "holder": "request-1",
    }


def test_a_completion_without_result_sends_its_mark_and_no_text() -> None:
    _, arguments = TEXTS.complete(DONE.replace(response_data="", result_kept=False), START_MS)

    assert arguments[8] == ""
    assert json.loads(arguments[6])["result_not_kept"] is True


def test_a_renewal_sends_the_ends() -> None:
    kept = str(kept_ms(OFFER, START_MS))

    assert TEXTS.renew(OFFER, START_MS) == (RENEW, [*FIRST, "token", "1800000060250", "1800003600", kept])


def test_a_release_sends_the_token() -> None:
    assert TEXTS.release(OFFER) == (RELEASE, [*FIRST, "token", ""])


def test_a_release_of_an_orphan_sends_the_present() -> None:
    assert TEXTS.release(OFFER, START_MS) == (RELEASE, [*FIRST, "token", str(START_MS)])


# Answers


@pytest.mark.parametrize("answer", [[b"refused", b"{}"], ["refused", "{}"]], ids=["bytes", "texts"])
def test_an_answer_is_read_whether_the_client_decodes_or_not(answer: list[Any]) -> None:
    assert reply(KEY, answer) == Reply("refused", ("{}",))


def test_the_answer_that_a_value_is_no_record_is_an_error_that_names_the_key() -> None:
    with pytest.raises(IdempotencyPersistenceConsistencyError, match=KEY):
        reply(KEY, [b"foreign"])


def test_an_answer_with_a_text_that_is_no_utf_8_is_the_same_error_and_shows_nothing_of_it() -> None:
    with pytest.raises(IdempotencyPersistenceConsistencyError, match=KEY) as error:
        reply(KEY, [b"refused", b"secret \xff"])

    assert (error.value.__cause__, "secret" in str(error.value)) == (None, False)


def test_the_error_of_a_foreign_value_says_what_to_do() -> None:
    assert str(foreign(KEY)) == (
        f"The value under {KEY} is no idempotency record. It was left as it is; delete it, or give this store a database or a "
        "key prefix of its own"
    )


@pytest.mark.parametrize(
    ("kind", "written"),
    [("granted", True), ("repeated", True), ("stored", True), ("refused", False), ("fenced", False), ("foreign", False)],
)
def test_only_an_answer_of_a_script_that_wrote_has_copies_to_wait_for(kind: str, written: bool) -> None:
    assert has_written([kind, "text"]) is has_written([kind.encode(), b"text"]) is written


@pytest.mark.parametrize(("said", "took_over"), [("0", False), ("1", True)])
def test_a_granted_record_is_the_offer_with_what_the_script_counted(said: str, took_over: bool) -> None:
    record = granted(OFFER, Reply("granted", ("7", said)))

    assert (record, record.took_over) == (OFFER.replace(generation=7), took_over)
