"""The head of each tenant's chain, kept outside of the database: a file, or a URL.

An attacker who can write the database can cut off the newest seals, and the rest looks whole. The head says how far the
chain had come. It advances after each transaction, and only along the same chain: if the database does not continue a
head, the head stays as it is, and verify finds that.

The file is JSON, {tenant: {"number", "digest", "at"}}, replaced in one step. A URL receives the same by PUT, with
If-Match or If-None-Match, and returns it by GET (404: none yet).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

import httpx2
import orjson

URL_TIMEOUT_S = 10.0
"""As long as the archive itself may take to answer (database.py)."""


OTHERS_WROTE = (409, 412)
PUT_TRIES = 4
"""Workers have turns: two that write at once are rare, and four are a place that refuses."""

READ, WRITTEN = "read", "written"


class Head(NamedTuple):
    """The last seal of a chain: its number, its digest, and when it was made (ms)."""

    number: int
    digest: str
    at: int


class HeadsUnavailable(Exception):
    """The file or URL of the heads cannot be read or written. The message says why."""


class HeadStore(Protocol):
    """Both calls block: meant for a thread. Both raise HeadsUnavailable."""

    def read(self) -> dict[str, Head]: ...

    def advance(self, tenant: str, head: Head) -> None:
        """Never moves a head back."""


def open_heads(where: str) -> HeadStore:
    return _Url(where) if urlsplit(where).scheme in ("http", "https") else _File(Path(where))


class _File:
    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[str, Head]:
        try:
            return _decode(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise HeadsUnavailable(f"{self._path} cannot be read: {error}") from None

    def advance(self, tenant: str, head: Head) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._path.with_name(f"{self._path.name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # the workers of one machine share it
                self._replace(_moved(self.read(), tenant, head))
        except OSError as error:
            raise HeadsUnavailable(f"{self._path} cannot be written: {error}") from None

    def _replace(self, heads: Mapping[str, Head]) -> None:
        temporary = self._path.with_name(f".{self._path.name}.new")
        with temporary.open("wb") as out:
            out.write(_encode(heads))
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(self._path)


class _Url:
    """Workers of several machines replace one document. Each says which version it has read (RFC 9110, section 13), so
    that none takes back a head which another has moved meanwhile. A place that knows no versions is replaced as it is.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    def read(self) -> dict[str, Head]:
        with _open(READ) as http:
            return self._get(http)[0]

    def advance(self, tenant: str, head: Head) -> None:
        with _open(WRITTEN) as http:
            for _ in range(PUT_TRIES):
                heads, condition = self._get(http)
                moved = _moved(heads, tenant, head)
                if moved == heads:
                    return
                headers = {"Content-Type": "application/json", **condition}
                answer = http.put(self._url, content=_encode(moved), headers=headers)
                if answer.status_code not in OTHERS_WROTE:
                    answer.raise_for_status()
                    return
        raise HeadsUnavailable(
            f"the heads' URL cannot be written: it answered {answer.status_code} {PUT_TRIES} times. It must let a "
            "document be replaced; to keep what was there, let it keep every version"
        )

    def _get(self, http: httpx2.Client) -> tuple[dict[str, Head], dict[str, str]]:
        """And what a PUT must say so that it replaces just that."""
        answer = http.get(self._url)
        if answer.status_code == 404:
            return {}, {"If-None-Match": "*"}
        tag = answer.raise_for_status().headers.get("etag", "")
        is_strong = tag.startswith('"')  # a weak one never matches
        return _decode(answer.content), {"If-Match": tag} if is_strong else {}


@contextmanager
def _open(what: str) -> Iterator[httpx2.Client]:
    try:
        with httpx2.Client(timeout=URL_TIMEOUT_S) as http:
            yield http
    except (httpx2.HTTPError, ValueError) as error:
        raise HeadsUnavailable(f"the heads' URL cannot be {what}: {_why(error)}") from None


def _why(error: Exception) -> str:
    """httpx2 says the whole URL with a status, and it may hold a password."""
    if isinstance(error, httpx2.HTTPStatusError):
        return f"the answer is {error.response.status_code}"
    return type(error).__name__ if isinstance(error, httpx2.HTTPError) else str(error)


def _moved(heads: Mapping[str, Head], tenant: str, head: Head) -> dict[str, Head]:
    known = heads.get(tenant)
    return {**heads, tenant: head} if known is None or known.number < head.number else dict(heads)


def _encode(heads: Mapping[str, Head]) -> bytes:
    return orjson.dumps({tenant: head._asdict() for tenant, head in heads.items()}, option=orjson.OPT_INDENT_2) + b"\n"


def _decode(content: bytes) -> dict[str, Head]:
    """Raises ValueError."""
    try:
        heads = {tenant: Head(**head) for tenant, head in orjson.loads(content).items()}
    except (TypeError, AttributeError):
        raise ValueError("this is not a file of heads") from None
    for head in heads.values():
        if not (type(head.number) is int and head.number > 0 and isinstance(head.digest, str)):
            raise ValueError("a head has no number or no digest")
    return heads
