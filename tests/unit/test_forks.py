"""Clients in a forked child: those that a store made are made anew, and a client that was being made keeps nobody waiting."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from idempotency import DynamoDBPersistenceLayer, S3ResultOffload

OPERATIONS = ("put_item", "get_item", "update_item", "delete_item", "put_object", "get_object")


def given() -> Any:
    return SimpleNamespace(**dict.fromkeys(OPERATIONS, print))


def test_a_fork_drops_the_clients_that_stores_have_made_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DynamoDBPersistenceLayer, "_made_client", lambda _store, _region: given())
    monkeypatch.setattr(S3ResultOffload, "_new_client", lambda _offload: given())
    options: dict[str, Any] = {"replication": "eventual", "home_region": ["eu-west-1", "eu-central-1"]}
    own = given()
    store, mine = DynamoDBPersistenceLayer("t"), DynamoDBPersistenceLayer("t", boto3_client=own)
    regional = DynamoDBPersistenceLayer("t", region_clients={"eu-west-1": own}, **options)
    offload, my_offload = S3ResultOffload("b"), S3ResultOffload("b", boto3_client=own)
    made = [store.client, *[regional._client_of(key) for key in "abcdefgh"], offload.client]

    for each in (store, mine, regional, offload, my_offload):
        each.after_fork()

    again = [store.client, *[regional._client_of(key) for key in "abcdefgh"], offload.client]
    assert {id(client) for client in made} & {id(client) for client in again} == {id(own)}
    assert (mine.client, my_offload.client) == (own, own)


def run(story: str) -> None:
    """A process of its own, because it forks."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }
    done = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-c", story],
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("kind", ["boto3", "lean"])
def test_a_child_makes_its_own_clients_and_keeps_the_given_ones(kind: str) -> None:
    run(f"""
import os, sys
from idempotency import DynamoDBPersistenceLayer, S3ResultOffload

operations = ("put_item", "get_item", "update_item", "delete_item", "put_object", "get_object")
given = type("Client", (), dict.fromkeys(operations, lambda self: None))()
options = dict(client={kind!r}, replication="eventual", home_region=["eu-west-1", "eu-central-1"])
stores = [DynamoDBPersistenceLayer("t", client={kind!r}), DynamoDBPersistenceLayer("t", **options)]
kept = [
    DynamoDBPersistenceLayer("t", boto3_client=given),
    DynamoDBPersistenceLayer("t", region_clients={{"eu-west-1": given, "eu-central-1": given}}, **options),
]
offload, kept_offload = S3ResultOffload("bucket"), S3ResultOffload("bucket", boto3_client=given)

def clients(stores):
    return [stores[0].client] + [stores[1]._client_of(key) for key in "abcdefgh"]

before, kept_before = [*clients(stores), offload.client], [*clients(kept), kept_offload.client]
child = os.fork()
if child == 0:
    after, kept_after = [*clients(stores), offload.client], [*clients(kept), kept_offload.client]
    is_new = not {{id(each) for each in before}} & {{id(each) for each in after}}
    os._exit(0 if is_new and all(one is other for one, other in zip(kept_before, kept_after)) else 1)
assert all(one is other for one, other in zip(before, [*clients(stores), offload.client]))
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
""")


@pytest.mark.parametrize("kind", ["boto3", "lean"])
def test_a_child_that_is_forked_while_another_thread_makes_the_first_client_goes_on(kind: str) -> None:
    run(f"""
import logging, os, signal, sys, threading  # logging, because its own hooks must not be registered during the fork
from idempotency import DynamoDBPersistenceLayer

making = threading.Event()
made_client = DynamoDBPersistenceLayer._made_client

def slowly(store, region):
    making.set()
    return made_client(store, region)

DynamoDBPersistenceLayer._made_client = slowly
store = DynamoDBPersistenceLayer("t", client={kind!r})
thread = threading.Thread(target=lambda: store.client)
thread.start()
making.wait(30)
child = os.fork()
if child == 0:
    signal.alarm(30)
    DynamoDBPersistenceLayer("t", client={kind!r}).client
    os._exit(0)
thread.join()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
""")
