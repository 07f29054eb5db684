"""Over TLS the name is what counts, though the connection goes to a checked address."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from shared.fetching.addresses import allowance
from shared.fetching.client import Fetcher, Limits
from shared.fetching.failures import FetchFailed


@dataclass
class SecureSite:
    """A TLS server on loopback with the certificate of `public.example`."""

    port: int
    trust: ssl.SSLContext
    reply: bytes
    names: list[str | None] = field(default_factory=list)

    def fetcher(self) -> Fetcher:
        """Trusts the site's certificate; every name leads to it."""
        allowed = allowance(f"127.0.0.1/32:{self.port}")
        return Fetcher(allowed, Limits(total=5, idle=2), lambda *_: ["127.0.0.1"], self.trust)


def _certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "public.example")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("public.example")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = folder / "certificate.pem", folder / "key.pem"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


@pytest.fixture
def secure_site(tmp_path: Path) -> Iterator[Callable[[bytes], SecureSite]]:
    """Starts one TLS site a test."""
    certificate, key = _certificate(tmp_path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def start(reply: bytes) -> SecureSite:
        site = SecureSite(listener.getsockname()[1], ssl.create_default_context(cafile=str(certificate)), reply)
        server.sni_callback = lambda _, name, __: site.names.append(name)

        def serve() -> None:
            while True:
                try:
                    plain, _ = listener.accept()
                except OSError:
                    return
                plain.settimeout(5)
                with plain, contextlib.suppress(OSError), server.wrap_socket(plain, server_side=True) as connection:
                    connection.recv(65536)
                    connection.sendall(site.reply)
                    connection.unwrap()

        threads.append(threading.Thread(target=serve, daemon=True))
        threads[0].start()
        return site

    yield start
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    for thread in threads:
        thread.join(5)


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"


def test_the_certificate_is_that_of_the_name(secure_site: Callable[[bytes], SecureSite]) -> None:
    """SNI and certificate are of the host, not of the address that was connected to."""
    site = secure_site(OK)
    assert site.fetcher().fetch(f"https://public.example:{site.port}/").body == b"hello"
    assert site.names == ["public.example"]


@pytest.mark.parametrize("host", ["other.example", str(ipaddress.ip_address("127.0.0.1"))])
def test_another_name_is_not_believed(secure_site: Callable[[bytes], SecureSite], host: str) -> None:
    """A certificate for somebody else ends the fetch."""
    site = secure_site(OK)
    with pytest.raises(FetchFailed) as refused:
        site.fetcher().fetch(f"https://{host}:{site.port}/")
    assert refused.value.reason == "web-unreachable"


def test_an_unknown_authority_is_not_believed(secure_site: Callable[[bytes], SecureSite]) -> None:
    """Without the test's own trust the same site is refused: certificates are checked by default."""
    site = secure_site(OK)
    fetcher = Fetcher(site.fetcher().allowed, resolver=lambda *_: ["127.0.0.1"])
    with pytest.raises(FetchFailed) as refused:
        fetcher.fetch(f"https://public.example:{site.port}/")
    assert refused.value.reason == "web-unreachable"


def test_no_redirect_leaves_encryption(secure_site: Callable[[bytes], SecureSite]) -> None:
    """From https to http of the same host: refused, before anything is asked in the open."""
    site = secure_site(
        b"HTTP/1.1 302 Found\r\nLocation: http://public.example/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
    with pytest.raises(FetchFailed, match="from https to http") as refused:
        site.fetcher().fetch(f"https://public.example:{site.port}/")
    assert refused.value.reason == "redirect-refused"
    assert len(site.names) == 1
