"""Receivers of webhooks: real servers over TLS, with certificates made here."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

HANGS = b""
"""An answer that does not come."""


def certificate(folder: Path, *names: str) -> Path:
    """A key and a certificate of these names, signed by itself, in one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(issuer, issuer, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([_named(name) for name in names]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / f"{names[0]}.pem"
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    path.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain) + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


def _named(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def answer(status: int, headers: str = "", body: bytes = b"") -> bytes:
    head = f"HTTP/1.1 {status} Said\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{headers}\r\n"
    return head.encode() + body


class Request(NamedTuple):
    """`headers`: names in lower case."""

    target: str
    headers: dict[str, str]
    body: bytes


class Receiver:
    """`answers`: what it gives to the n-th request (from 0); HANGS: nothing."""

    def __init__(self, answers: Callable[[int], bytes]) -> None:
        self.answers = answers
        self.connections = 0
        self.requests: list[Request] = []
        self.port = 0
        self.asked_for: list[str | None] = []
        """The server names of TLS (SNI)."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            line, *lines = head.strip().split("\r\n")
            headers = {name.lower(): text for name, _, text in (each.partition(": ") for each in lines)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            self.requests.append(Request(line.split(" ")[1], headers, body))
            if said := self.answers(len(self.requests) - 1):
                writer.write(said)
                await writer.drain()
            else:
                await reader.read()  # until the other side hangs up
        writer.close()


@asynccontextmanager
async def receiving(
    answers: Callable[[int], bytes] = lambda _: answer(204), *, certificate: Path | None = None, port: int = 0
) -> AsyncIterator[Receiver]:
    """On loopback; without a certificate over plain HTTP."""
    receiver = Receiver(answers)
    context = None
    if certificate:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)
        context.sni_callback = lambda _, name, __: receiver.asked_for.append(name)
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", port, ssl=context)
    try:
        receiver.port = server.sockets[0].getsockname()[1]
        yield receiver
    finally:
        server.close()
