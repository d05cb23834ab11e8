"""An endpoint with canned DynamoDB answers: `python stub.py [--delay-ms N] [--certificate PEM]`.

It reads whole requests, over HTTP and HTTPS and any number of kept connections, in one thread.  It evaluates no condition: a put
into the table `REFUSING` is refused by a completed record, any other write is done.  Nothing is kept, but requests and their
bytes are counted, for `GET /counts`.  It says its ports in one line, and ends when its standard input does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
import sys
from collections import Counter
from email.utils import formatdate
from typing import Any, ClassVar, Final
from zlib import crc32

GRANTING: Final = "granting"
REFUSING: Final = "refusing"
HOST: Final = "127.0.0.1"
END_OF_HEAD: Final = b"\r\n\r\n"
#: Part of the request id, which is as long as DynamoDB's.
REQUEST_ID: Final = "BENCHMARKSTUB0123456789ABCDEFGHIJKLMNOPQRSTU"
PHRASES: Final = {200: "OK", 400: "Bad Request"}
WRITES: Final = ("PutItem", "UpdateItem", "DeleteItem", "TransactWriteItems")


def answer(operation: str, request: dict[str, Any], result_json: str) -> tuple[int, dict[str, Any]]:
    """Status and body of an answer, with the members that DynamoDB's has."""
    refuses = request.get("TableName") == REFUSING
    if operation == "PutItem" and refuses:
        item = completed(request["Item"], result_json)
        kind = "com.amazonaws.dynamodb.v20120810#ConditionalCheckFailedException"
        return 400, {"__type": kind, "Item": item, "message": "The conditional request failed"}
    if operation == "GetItem":
        return 200, {"Item": completed(request["Key"], result_json)} if refuses else {}
    if operation in WRITES:
        return 200, {}
    return 400, {"__type": "com.amazon.coral.service#UnknownOperationException"}


def completed(item: dict[str, Any], result_json: str) -> dict[str, Any]:
    """The record that another call has left, written as the caller of this one writes its own."""
    other = {"owner_token": {"S": "0" * 32}} if "owner_token" in item else {}
    return {"expiration": {"N": "4102444800"}, **item, **other, "status": {"S": "COMPLETED"}, "data": {"S": result_json}}


class Endpoint(asyncio.Protocol):
    """One connection."""

    counts: ClassVar[Counter[str]] = Counter()
    delay_seconds = 0.0
    result_json = "null"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport: Any = transport
        self.received = b""
        self.counts["connections"] += 1

    def data_received(self, data: bytes) -> None:
        """Answer each request that is whole now."""
        self.received += data
        while (end := self.received.find(END_OF_HEAD)) >= 0:
            first, *fields = self.received[:end].decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
            length = end + len(END_OF_HEAD) + int(headers.get("content-length", "0"))
            if len(self.received) < length:
                return
            body, self.received = self.received[end + len(END_OF_HEAD) : length], self.received[length:]
            if first.startswith("GET /counts"):
                self.send(200, dict(self.counts))
                self.counts.clear()
                continue
            operation = headers.get("x-amz-target", "").rpartition(".")[2]
            self.counts[operation] += 1
            self.counts["bytes"] += length
            status, reply = answer(operation, json.loads(body), self.result_json)
            if self.delay_seconds:
                asyncio.get_running_loop().call_later(self.delay_seconds, self.send, status, reply)
            else:
                self.send(status, reply)

    def send(self, status: int, reply: dict[str, Any]) -> None:
        """Send the answer, with DynamoDB's headers."""
        body = json.dumps(reply, separators=(",", ":")).encode()
        request_id = f"{REQUEST_ID}{self.counts.total():08}"
        head = (
            f"HTTP/1.1 {status} {PHRASES[status]}\r\nServer: Server\r\n"
            f"Date: {formatdate(usegmt=True)}\r\nContent-Type: application/x-amz-json-1.0\r\nContent-Length: {len(body)}\r\n"
            f"Connection: keep-alive\r\nx-amzn-RequestId: {request_id}\r\nx-amz-crc32: {crc32(body)}\r\n\r\n"
        )
        self.transport.write(head.encode() + body)


async def serve(certificate: str | None) -> None:
    """Answer until standard input ends."""
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(Endpoint, HOST, 0, backlog=512)]
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        servers.append(await loop.create_server(Endpoint, HOST, 0, backlog=512, ssl=context))
    ended = asyncio.Event()
    loop.add_reader(sys.stdin, ended.set)  # nobody writes there, so it can be read when it ends
    sys.stdout.write(" ".join(str(server.sockets[0].getsockname()[1]) for server in servers) + "\n")
    sys.stdout.flush()
    await ended.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--delay-ms", type=float, default=0)
    parser.add_argument("--certificate")
    parser.add_argument("--result", default="null")
    options = parser.parse_args()
    Endpoint.delay_seconds = options.delay_ms / 1000
    Endpoint.result_json = options.result
    asyncio.run(serve(options.certificate))
