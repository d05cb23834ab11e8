"""A global table with eventual replication: a database of DynamoDB Local per Region, and a replicator that the test drives.

As the service does it (https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/V2globaltables_HowItWorks.html): a
condition is evaluated on the Region's own replica, each item is replicated by itself and whole, and of two writes of an item the
later one wins everywhere, a deletion included.  The delay is the test's: nothing arrives elsewhere before `replicate`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import count
from threading import RLock
from typing import TYPE_CHECKING, Any

from boto3.dynamodb.types import TypeDeserializer
from engines.tables import create_table, shared_client
from stores import CLIENTS

from idempotency import DynamoDBPersistenceLayer

if TYPE_CHECKING:
    from collections.abc import Callable

    from doubles import FakeClock

#: In the order of the stories: the second one's later write wins.
HERE, THERE = "us-east-1", "eu-west-1"

Item = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Write:
    """A write that some Region has applied: the whole item, None if it was deleted; *stamp* is later for a later write."""

    key: str
    stamp: tuple[int, int]
    item: Item | None


class Replica:
    """The client of one Region's replica, whose writes the global table remembers.

    Attributes:
        meta: The real client's; by it a store knows the Region.
        direct: boto3's client for the replica, whatever this one is.
        requests: (operation, request) of each call.
        before: What happens once, just before the next call of an operation.
    """

    def __init__(self, table: GlobalTable, client: Any, direct: Any) -> None:
        self.client = client
        self.direct = direct
        self.meta = client.meta
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.before: dict[str, Callable[[], object]] = {}
        self._table = table

    @property
    def operations(self) -> list[str]:
        return [operation for operation, _ in self.requests]

    def get_item(self, **request: Any) -> Any:
        self._noted("get_item", request)
        return self.client.get_item(**request)

    def put_item(self, **request: Any) -> Any:
        return self._written("put_item", request, request["Item"]["id"]["S"])

    def update_item(self, **request: Any) -> Any:
        return self._written("update_item", request, request["Key"]["id"]["S"])

    def delete_item(self, **request: Any) -> Any:
        return self._written("delete_item", request, request["Key"]["id"]["S"])

    def _noted(self, operation: str, request: dict[str, Any]) -> None:
        self.requests.append((operation, request))
        self.before.pop(operation, lambda: None)()

    def _written(self, operation: str, request: dict[str, Any], key: str) -> Any:
        self._noted(operation, request)
        with self._table.lock:  # a write and the image that it leaves are one
            answer = getattr(self.client, operation)(**request)
            self._table.wrote(self.meta.region_name, key)
        return answer


class GlobalTable:
    """Two replicas of one table, simple key `id`, and what has not been replicated yet."""

    def __init__(self, endpoint: str, clock: FakeClock, client_kind: str = "boto3") -> None:
        self.clock = clock
        self.lock = RLock()
        clients = {region: shared_client(endpoint, region) for region in (HERE, THERE)}
        self.name = create_table(clients[HERE])
        create_table(clients[THERE], self.name)
        self.replicas = {
            region: Replica(self, CLIENTS[client_kind](endpoint, region), client) for region, client in clients.items()
        }
        self._sequence = count()
        self._newest: dict[tuple[str, str], tuple[int, int]] = {}
        self._under_way: dict[str, list[Write]] = defaultdict(list)
        self._writes_left: int | None = None

    def store(self, region: str, **options: Any) -> DynamoDBPersistenceLayer:
        """The store of the function in this Region."""
        options = {"replication": "eventual", "boto3_client": self.replicas[region], **options}
        store = DynamoDBPersistenceLayer(self.name, **options)
        store.clock_ms = self.clock
        store.sleep_ms = self.clock.sleep_ms
        return store

    def peek(self, region: str, key: str) -> dict[str, Any] | None:
        """The item as this Region has it, past the wrapper."""
        item = self._image(region, key)
        return None if item is None else TypeDeserializer().deserialize({"M": item})

    def wrote(self, region: str, key: str) -> None:
        """Remember a Region's write for the other Region."""
        write = Write(key, (self.clock(), next(self._sequence)), self._image(region, key))
        self._newest[region, key] = write.stamp
        for other in self.replicas:
            if other != region:
                self._under_way[other].append(write)
        if self._writes_left is not None:
            self._writes_left -= 1
            if self._writes_left == 0:
                self.replicate()

    def replicate(self, *, to: str | None = None) -> None:
        """Let every write arrive, or those for one Region; a write that is older than the item there is dropped."""
        with self.lock:
            for region in [to] if to else list(self.replicas):
                for write in self._under_way.pop(region, []):
                    self._arrive(region, write)

    def replicate_after(self, writes: int) -> None:
        """Replicate as soon as so many more writes were applied, before the last one is answered."""
        self._writes_left = writes

    def _arrive(self, region: str, write: Write) -> None:
        if write.stamp < self._newest.get((region, write.key), (0, 0)):
            return
        self._newest[region, write.key] = write.stamp
        client = self.replicas[region].direct
        if write.item is None:
            client.delete_item(TableName=self.name, Key={"id": {"S": write.key}})
        else:
            client.put_item(TableName=self.name, Item=write.item)

    def _image(self, region: str, key: str) -> Item | None:
        client = self.replicas[region].direct
        item: Item | None = client.get_item(TableName=self.name, Key={"id": {"S": key}}, ConsistentRead=True).get("Item")
        return item
