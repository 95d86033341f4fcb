"""The heads of the chains at a URL: no worker takes back what another has written, and time stamps of them."""

from __future__ import annotations

import hashlib
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from broker.archive.audit import Audit
from broker.archive.heads import Head, HeadsUnavailable, open_heads
from broker.archive.setup import HEADS_NAME
from broker.archive.stamps import Stamper, check_stamp, load_roots, open_stamps
from broker.archive.writer import ArchiveWriter
from broker.log.meta import new_sid
from tests.archive.conftest import open_archive

OURS, THEIRS = Head(5, "5" * 64, 1), Head(7, "7" * 64, 1)


class Place(ThreadingHTTPServer):
    """A document that HTTP can replace. `meanwhile`: what another worker writes between a GET and the PUT after it."""

    def __init__(self) -> None:
        self.content: bytes | None = None
        self.meanwhile: bytes | None = None
        self.has_versions = True
        self.refuses = False
        self.conditions: list[str | None] = []
        super().__init__(("127.0.0.1", 0), _Document)
        self.url = f"http://127.0.0.1:{self.server_port}/heads"

    @property
    def tag(self) -> str:
        return f'"{hashlib.sha256(self.content or b"").hexdigest()}"'


class _Document(BaseHTTPRequestHandler):
    server: Place

    def do_GET(self) -> None:
        place = self.server
        if place.content is None:
            self._answer(404)
        else:
            self._answer(200, place.content, {"ETag": place.tag} if place.has_versions else {})

    def do_PUT(self) -> None:
        place = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if place.meanwhile is not None:
            place.content, place.meanwhile = place.meanwhile, None
        tag, none = self.headers["If-Match"], self.headers["If-None-Match"]
        place.conditions.append((tag and "If-Match") or (none and "If-None-Match"))
        if place.refuses or (tag and tag != place.tag) or (none and place.content is not None):
            self._answer(412)
        else:
            place.content = body
            self._answer(204)

    def _answer(self, status: int, content: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def place() -> Iterator[Place]:
    with Place() as place:
        serving = threading.Thread(target=place.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        yield place
        place.shutdown()
        serving.join()


def test_each_replaces_just_what_it_has_read(place: Place) -> None:
    heads = open_heads(place.url)
    heads.advance("t", OURS)
    heads.advance("u", OURS)
    heads.advance("u", OURS)  # it is there
    assert place.conditions == ["If-None-Match", "If-Match"]
    assert heads.read() == {"t": OURS, "u": OURS}


def test_what_another_worker_writes_in_between_stays(place: Place) -> None:
    heads = open_heads(place.url)
    heads.advance("t", THEIRS)
    place.meanwhile, place.content = place.content, None
    heads.advance("u", OURS)
    heads.advance("t", OURS)
    assert heads.read() == {"t": THEIRS, "u": OURS}


def test_a_place_without_versions_is_replaced_as_it_is(place: Place) -> None:
    place.has_versions = False
    heads = open_heads(place.url)
    heads.advance("t", OURS)
    heads.advance("t", THEIRS)
    assert (place.conditions, heads.read()) == (["If-None-Match", None], {"t": THEIRS})


def test_a_place_that_refuses_to_replace_is_said(place: Place) -> None:
    place.refuses = True
    with pytest.raises(HeadsUnavailable, match="must let a document be replaced"):
        open_heads(place.url).advance("t", OURS)


# -- time stamps ---------------------------------------------------------------------------------------------

TSA = """
[tsa]
default_tsa = own
[own]
serial = {folder}/serial
signer_cert = {folder}/tsa.pem
signer_key = {folder}/tsa.key
signer_digest = sha256
default_policy = 1.2.3.4
digests = sha256, sha384, sha512
accuracy = secs:1
[root]
basicConstraints = critical, CA:true
keyUsage = critical, keyCertSign
[stamping]
basicConstraints = critical, CA:false
keyUsage = critical, digitalSignature
extendedKeyUsage = critical, timeStamping
"""


class Authority(ThreadingHTTPServer):
    """A time stamp authority: openssl's, behind HTTP."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "tsa.cnf").write_text(TSA.format(folder=folder))
        (folder / "serial").write_text("01\n")
        ec = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -config tsa.cnf -x509"
        self.run(f"req {ec} -subj /CN=root -extensions root -keyout root.key -out root.pem")
        issued = "-CA root.pem -CAkey root.key"
        self.run(f"req {ec} {issued} -subj /CN=tsa -extensions stamping -keyout tsa.key -out tsa.pem")
        super().__init__(("127.0.0.1", 0), _Stamping)
        self.url = f"http://127.0.0.1:{self.server_port}/"

    def run(self, arguments: str) -> None:
        subprocess.run(["openssl", *arguments.split()], cwd=self.folder, check=True, capture_output=True)


class _Stamping(_Document):
    server: Authority  # type: ignore[assignment]

    def do_POST(self) -> None:
        folder = self.server.folder
        (folder / "query").write_bytes(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.run("ts -reply -config tsa.cnf -queryfile query -out answer")
        self._answer(200, (folder / "answer").read_bytes())


@pytest.fixture
def authority(tmp_path: Path) -> Iterator[Authority]:
    with Authority(tmp_path) as authority:
        serving = threading.Thread(target=authority.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        yield authority
        authority.shutdown()
        serving.join()


@pytest.mark.processes
async def test_heads_are_stamped_once_a_day_and_a_chain_that_was_made_anew_is_found(
    authority: Authority, tmp_path: Path
) -> None:
    async with open_archive(f"sqlite:///{tmp_path}/archive.db", tmp_path) as archive:
        stamps = open_stamps(str(tmp_path / HEADS_NAME))
        writer = ArchiveWriter(archive.database, archive.signer, archive.heads, Stamper(authority.url, stamps))
        await writer.stamp_heads()
        assert stamps.read() == [], "there is no head yet"
        await archive.add(new_sid(), new_sid())
        await writer.stamp_heads()
        await archive.add(new_sid())
        await writer.stamp_heads()
        [stamp] = stamps.read()
        assert stamp.heads["t"][0] == 2
        assert abs(datetime.now(UTC) - stamp.at) < timedelta(minutes=5)
        roots = load_roots(tmp_path / "root.pem")
        assert [check_stamp(stamp, known) for known in (roots, [])] == [None, None]

        async def findings() -> set[str]:
            checked = [(one, check_stamp(one, roots)) for one in stamps.read()]
            report = await Audit(archive.database, archive.keys, archive.heads.read(), checked).run()
            return {finding.what for finding in report.findings}

        assert await findings() == set()
        for table in ("streams", "briefs", "seals"):
            await archive.change(f"DELETE FROM {table}")
        (tmp_path / HEADS_NAME).unlink()
        await archive.add(new_sid(), new_sid(), new_sid())
        assert await archive.findings() == [], "the very key sealed it, and its head is new"
        assert await findings() == {"stamp_differs"}


@pytest.mark.processes
async def test_a_stamp_of_something_else_or_by_somebody_else_is_none(authority: Authority, tmp_path: Path) -> None:
    stamps = open_stamps(str(tmp_path / "heads"))
    assert Stamper(authority.url, stamps).stamp({"t": OURS})
    [stamp] = stamps.read()
    roots = load_roots(tmp_path / "root.pem")
    forged = stamp._replace(heads={"t": (5, "6" * 64)})
    assert check_stamp(forged, roots)
    assert check_stamp(forged, [])
    assert check_stamp(stamp._replace(answer=b"x"), [])
    authority.run(f"req -x509 -newkey ed25519 -nodes -subj /CN=other -keyout other.key -out {tmp_path}/other.pem")
    assert check_stamp(stamp, load_roots(tmp_path / "other.pem"))


def test_an_authority_that_is_away_is_said(tmp_path: Path, place: Place) -> None:
    with pytest.raises(HeadsUnavailable, match="answered 501"):
        Stamper(place.url, open_stamps(str(tmp_path / "heads"))).stamp({"t": OURS})
