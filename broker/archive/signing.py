"""The key that signs seals, and the keys that check them: PEM files (RFC 7468; the keys as in RFC 8410).

Only the worker has the private key. If it is missing and belongs beside a SQLite archive, it is made. All public keys
are in one file (a key that was replaced still checks the seals that it signed).
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from broker.archive.seal import Signer, key_id

PRIVATE_NAME, PUBLIC_NAME = "seal-key.pem", "seal-public.pem"

_PUBLIC_BLOCK = re.compile(rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.DOTALL)

PublicKeys = dict[str, Ed25519PublicKey]


class BadKey(Exception):
    """A key file that is missing or does not hold an Ed25519 key. The message says which, and how to make one."""


def load_signer(path: Path) -> Signer:
    """Raises BadKey."""
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise BadKey(
            f"{path} does not hold a readable private key ({_why(error)}). "
            f"Make one with: openssl genpkey -algorithm ed25519 -out {path}"
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise BadKey(f"{path} holds a key that is not an Ed25519 key.")
    return Signer(key)


def load_or_make_signer(path: Path) -> Signer:
    """The signer of this file. If the file is missing, it is made, with the public key beside it. Raises BadKey."""
    if not path.exists():
        key = Ed25519PrivateKey.generate()
        _write_new(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
    signer = load_signer(path)
    _write_new(path.with_name(PUBLIC_NAME), public_pem(signer.public_key), 0o644)
    return signer


def load_public_keys(path: Path) -> PublicKeys:
    """key id → key, for every Ed25519 key in the file. Raises BadKey if there is none."""
    try:
        blocks = _PUBLIC_BLOCK.findall(path.read_bytes())
        keys = [load_pem_public_key(block) for block in blocks]
    except (OSError, ValueError) as error:
        raise BadKey(f"{path} does not hold a readable public key ({_why(error)}).") from None
    found = {key_id(key): key for key in keys if isinstance(key, Ed25519PublicKey)}
    if not found:
        raise BadKey(f"{path} does not hold an Ed25519 public key (-----BEGIN PUBLIC KEY-----).")
    return found


def public_pem(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _write_new(path: Path, content: bytes, mode: int) -> None:
    """Write the whole file or nothing. A file that exists stays as it is (two workers may start together)."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(file, "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        os.unlink(temporary)


def _why(error: Exception) -> str:
    return error.strerror or "unreadable" if isinstance(error, OSError) else "it is in another form"
