"""A TLS end before a server that knows only plain connections: `with tls_end("redis://127.0.0.1:6379") as url`.

The certificates are made when they are needed, and trusted by nobody else.
"""

from __future__ import annotations

import socket
import ssl
import tempfile
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from threading import Lock, Thread
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from engines import Server
from engines.caches import valkey

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST: Final = "127.0.0.1"
NAMES: Final = (HOST, "localhost")
#: Wide enough for any clock.
VALID: Final = (datetime(2020, 1, 1, tzinfo=UTC), datetime(2049, 1, 1, tzinfo=UTC))
#: As much as a connection hands on at a time.
CHUNK: Final = 65_536

# Python's strict checks want these of a certificate: https://docs.python.org/3/library/ssl.html#ssl.VERIFY_X509_STRICT
_SIGNS: Final = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


@contextmanager
def tls_end(endpoint: str, names: tuple[str, ...] = NAMES) -> Iterator[str]:
    """Answer over TLS for the server at *endpoint*, with a certificate for *names*.

    The URL that is yielded names the authority to trust: `rediss://127.0.0.1:PORT?ssl_ca_certs=PATH`.
    """
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tls-")))
        authority, chain = certificates(home, names)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain)
        end = _End(context, address(endpoint))
        stack.callback(end.close)
        yield f"rediss://{HOST}:{end.port}?ssl_ca_certs={authority}"


@contextmanager
def valkey_tls() -> Iterator[Server]:
    """A Valkey server behind a TLS end."""
    with valkey() as server, tls_end(server.endpoint) as url:
        yield Server(url, server.version)


def address(endpoint: str) -> tuple[str, int]:
    """The host and the port of a URL."""
    parts = urlsplit(endpoint)
    return parts.hostname or HOST, parts.port or 0


def certificates(folder: Path, names: tuple[str, ...]) -> tuple[Path, Path]:
    """Make an authority, and a certificate of its for the names.

    Returns:
        The file with the authority's certificate, and the file with the other one and its key.
    """
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = _certificate("tests' authority", authority_key).add_extension(_SIGNS, critical=True)
    authority = authority.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    own = _certificate("tests' authority", key, "tests' server")
    own = own.add_extension(x509.SubjectAlternativeName([_name(each) for each in names]), critical=False)
    own = own.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    authority_file, chain_file = folder / "authority.pem", folder / "server.pem"
    authority_file.write_bytes(authority.sign(authority_key, hashes.SHA256()).public_bytes(pem))
    chain_file.write_bytes(own.sign(authority_key, hashes.SHA256()).public_bytes(pem) + private)
    return authority_file, chain_file


def _certificate(issuer: str, key: ec.EllipticCurvePrivateKey, subject: str = "") -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject or issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(VALID[0])
        .not_valid_after(VALID[1])
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


class _End:
    """Listens, and serves each connection in a thread of its own."""

    def __init__(self, context: ssl.SSLContext, server: tuple[str, int]) -> None:
        self._context = context
        self._server = server
        self._listener = socket.create_server((HOST, 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._threads: list[Thread] = []
        self._lock = Lock()
        self._is_closed = False
        self._start(Thread(target=self._listen))

    def close(self) -> None:
        """End all connections, and wait until their threads have ended."""
        with self._lock:
            self._is_closed = True
            for each in (self._listener, *self._open):
                _end(each)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _start(self, thread: Thread) -> None:
        thread.daemon = True
        self._threads.append(thread)
        thread.start()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._start(Thread(target=self._serve, args=(connection,)))

    def _serve(self, connection: socket.socket) -> None:
        # What goes wrong, a refused handshake or a server that has ended, the client sees as an end of its connection.
        with suppress(OSError), self._kept(connection):
            client = self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            with self._kept(client):
                client.do_handshake()
                with self._kept(socket.create_connection(self._server, timeout=5)) as server:
                    server.settimeout(None)
                    _carry(client, server)

    @contextmanager
    def _kept(self, connection: socket.socket) -> Iterator[socket.socket]:
        """So that `close` ends it, if it has not been called already; it is closed afterwards."""
        with closing(connection):
            with self._lock:
                if self._is_closed:
                    raise ConnectionAbortedError
                self._open.add(connection)
            try:
                yield connection
            finally:
                with self._lock:
                    self._open.discard(connection)


def _end(connection: socket.socket) -> None:
    """Wake who waits for it.  Not the method of an `SSLSocket`, which takes the TLS away from under a reader."""
    with suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def _carry(client: ssl.SSLSocket, server: socket.socket) -> None:
    """Hand on what each says to the other, until one of them has ended."""
    others = {client: server, server: client}
    with DefaultSelector() as selector:
        for each in others:
            selector.register(each, EVENT_READ)
        while True:
            for key, _ in selector.select():
                reader = cast("socket.socket", key.fileobj)
                said = reader.recv(CHUNK)
                while reader is client and client.pending():
                    said += client.recv(CHUNK)
                if not said:
                    return
                others[reader].sendall(said)
