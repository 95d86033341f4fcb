"""Time stamps of the heads (RFC 3161), one a day: this far the chains had come by then, says an authority that others
trust. Whoever has all keys can seal another history, but cannot have it stamped in the past.

They lie beside the heads, in `<heads>.stamps`: a JSON list of {"heads", "answer"}, the newest last. What is stamped are
the heads' numbers and digests as canonical JSON; `answer` is the authority's, in base64.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

import httpx2
import orjson
from cryptography.x509 import Certificate, load_pem_x509_certificates

from broker.archive.heads import Head, HeadsUnavailable
from broker.archive.seal import canonical

SUFFIX = ".stamps"
EVERY = timedelta(days=1)
KEPT = 32
"""The newest: some 5 KB each. A place that keeps every version has the older ones, too."""

ANSWER_S = 20.0


class Stamp(NamedTuple):
    """`heads`: tenant → number and digest. `answer`: a TimeStampResp, DER."""

    heads: Mapping[str, tuple[int, str]]
    answer: bytes

    @property
    def message(self) -> bytes:
        return canonical({tenant: {"number": number, "digest": of} for tenant, (number, of) in self.heads.items()})

    @property
    def at(self) -> datetime:
        """When, as the authority says, whether or not it is believed. Raises ValueError."""
        return _decoded(self.answer).tst_info.gen_time.astimezone(UTC)  # type: ignore[no-any-return]


class StampStore(Protocol):
    """Both calls block, and raise HeadsUnavailable."""

    def read(self) -> list[Stamp]: ...

    def write(self, stamps: Sequence[Stamp]) -> None: ...


def open_stamps(heads: str) -> StampStore:
    """Those of the heads that are kept there."""
    where = heads + SUFFIX
    return _Url(where) if urlsplit(where).scheme in ("http", "https") else _File(Path(where))


class Stamper:
    """Has the heads stamped when a day is over. `authority`: its URL."""

    def __init__(self, authority: str, stamps: StampStore) -> None:
        self._authority = authority
        self._stamps = stamps

    def stamp(self, heads: Mapping[str, Head]) -> bool:
        """Whether there is a new one. Blocks; raises HeadsUnavailable."""
        known = self._stamps.read()
        if not heads or (known and _is_young(known[-1])):
            return False
        named = {tenant: (head.number, head.digest) for tenant, head in heads.items()}
        unstamped = Stamp(named, b"")
        stamp = unstamped._replace(answer=self._ask(unstamped.message))
        if problem := check_stamp(stamp, []):
            raise HeadsUnavailable(f"the time stamp authority's answer is no stamp of the heads: {problem}")
        self._stamps.write([*known, stamp][-KEPT:])
        return True

    def _ask(self, message: bytes) -> bytes:
        from rfc3161_client import TimestampRequestBuilder

        asked = TimestampRequestBuilder().data(message).cert_request(cert_request=True).build().as_bytes()
        try:
            answer = httpx2.post(
                self._authority,
                content=asked,
                headers={"Content-Type": "application/timestamp-query"},
                timeout=ANSWER_S,
            )
            return answer.raise_for_status().content
        except httpx2.HTTPStatusError as error:
            raise HeadsUnavailable(f"the time stamp authority answered {error.response.status_code}") from None
        except httpx2.HTTPError as error:
            raise HeadsUnavailable(f"the time stamp authority cannot be asked: {type(error).__name__}") from None


def check_stamp(stamp: Stamp, roots: Sequence[Certificate]) -> str | None:
    """What is wrong with it; None: nothing. Without `roots` it is not checked who has signed it."""
    from rfc3161_client import VerificationError, VerifierBuilder

    try:
        answer = _decoded(stamp.answer)
        imprint = answer.tst_info.message_imprint
        if answer.status != 0:
            return f"it was not granted (status {answer.status})"
        if not roots:
            sizes = {32: hashlib.sha256, 48: hashlib.sha384, 64: hashlib.sha512}
            make = sizes.get(len(imprint.message))
            return None if make and make(stamp.message).digest() == imprint.message else "it is of something else"
        builder = VerifierBuilder()
        for root in roots:
            builder = builder.add_root_certificate(root)
        builder.build().verify_message(answer, stamp.message)
    except (VerificationError, ValueError) as error:
        return str(error) or type(error).__name__
    return None


def load_roots(path: Path) -> list[Certificate]:
    """The authority's root certificates, PEM. Raises ValueError."""
    try:
        return load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError):
        raise ValueError(f"{path} holds no readable certificate (-----BEGIN CERTIFICATE-----)") from None


def _is_young(stamp: Stamp) -> bool:
    try:
        return datetime.now(UTC) - stamp.at < EVERY
    except ValueError:
        return False


def _decoded(answer: bytes) -> Any:
    """Raises ValueError."""
    from rfc3161_client import decode_timestamp_response

    return decode_timestamp_response(answer)


class _File:
    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> list[Stamp]:
        try:
            return _parsed(self._path.read_bytes())
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise HeadsUnavailable(f"{self._path} cannot be read: {error}") from None

    def write(self, stamps: Sequence[Stamp]) -> None:
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            temporary.write_bytes(_text(stamps))
            temporary.replace(self._path)
        except OSError as error:
            raise HeadsUnavailable(f"{self._path} cannot be written: {error}") from None


class _Url:
    def __init__(self, url: str) -> None:
        self._url = url

    def read(self) -> list[Stamp]:
        try:
            answer = httpx2.get(self._url, timeout=ANSWER_S)
            return [] if answer.status_code == 404 else _parsed(answer.raise_for_status().content)
        except (httpx2.HTTPError, ValueError) as error:
            raise HeadsUnavailable(f"the heads' time stamps cannot be read: {type(error).__name__}") from None

    def write(self, stamps: Sequence[Stamp]) -> None:
        try:
            headers = {"Content-Type": "application/json"}
            httpx2.put(self._url, content=_text(stamps), headers=headers, timeout=ANSWER_S).raise_for_status()
        except httpx2.HTTPError as error:
            raise HeadsUnavailable(f"the heads' time stamps cannot be written: {type(error).__name__}") from None


def _text(stamps: Sequence[Stamp]) -> bytes:
    return orjson.dumps(
        [{"heads": stamp.heads, "answer": base64.b64encode(stamp.answer).decode()} for stamp in stamps],
        option=orjson.OPT_INDENT_2,
    )


def _parsed(content: bytes) -> list[Stamp]:
    """Raises ValueError."""
    try:
        return [
            Stamp(
                {tenant: (int(number), str(digest)) for tenant, (number, digest) in one["heads"].items()},
                base64.b64decode(one["answer"], validate=True),
            )
            for one in orjson.loads(content)
        ]
    except (TypeError, KeyError, AttributeError, binascii.Error):
        raise ValueError("these are not time stamps of heads") from None
