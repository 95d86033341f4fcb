"""The commands that look back: which streams there are, who saw them, and whether they are as they were."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from broker.command.client import Client, stream_path
from broker.command.terminal import (
    DEFAULT_URL,
    STATES,
    AsJson,
    Key,
    StreamId,
    Url,
    clean,
    connected,
    fail,
    note,
    print_json,
    print_table,
    read_settings,
)
from broker.settings import PREFIX, Settings, SettingsError, with_options
from broker.store.archive_url import archive_url

Limit = Annotated[int, typer.Option(min=1, max=200)]
Cursor = Annotated[str | None, typer.Option(help="the `next` of the page before")]
ApiKey = Annotated[str, typer.Option("--api-key", envvar="LASTEVENT_API_KEY", help="a key of the server")]
ALL_FINDINGS = 50
RUNNING = ("queued", "running")
ERASURE_WAIT_S, ERASURE_POLL_S = 30.0, 0.5
"""A person is erased in some ten seconds: a worker looks once more, a lease after its last find."""

NO_KEYS = f"give --key FILE, or set {PREFIX}SEAL_PUBLIC_KEYS: the public keys that seals are checked with"


# -- what there is -----------------------------------------------------------------------------------------


def list_(
    session: Annotated[str | None, typer.Option(help="only this session's")] = None,
    user: Annotated[str | None, typer.Option(help="only this user's")] = None,
    model: Annotated[str | None, typer.Option(help="only this model's: anthropic/<name>")] = None,
    state: Annotated[str | None, typer.Option(help="queued, running, done, error or cancelled")] = None,
    since: Annotated[str | None, typer.Option(help="created then (UTC) or later: 2026-11-21, 2026-11-21T10:00")] = None,
    until: Annotated[str | None, typer.Option(help="created then or before; a day is all of it")] = None,
    limit: Limit = 20,
    cursor: Cursor = None,
    url: Url = DEFAULT_URL,
    key: Key = "",
    as_json: AsJson = False,
) -> None:
    """List streams, newest first."""
    which = {"session_id": session, "user_id": user, "model": model, "state": state, "limit": limit, "cursor": cursor}
    if state is not None and state not in STATES:
        fail(f"--state is one of {', '.join(STATES)}", code=2)
    which |= {"created_after": _time(since, "--since"), "created_before": _time(until, "--until", is_end=True)}
    with connected(url, key) as client:
        page = _page(client, "/v1/streams", which)
    if as_json:
        print_json(page)
        return
    is_asked = any(which[name] is not None for name in which if name not in ("limit", "cursor"))
    print_table(
        ("ID", "STATE", "CREATED (UTC)", "USER", "SESSION", "MODEL", ">FIRST TEXT", ">LASTED", ">LAST EVENT"),
        [list(_stream_row(stream)) for stream in page["streams"]],
        none="No streams match." if is_asked else "No streams yet. Start one: lastevent generate PROMPT",
        is_whole=page["next"] is None,
    )
    _say_more(page)


def sessions(
    session: Annotated[str | None, typer.Argument(metavar="[SESSION]", help="show this one's streams")] = None,
    limit: Limit = 20,
    cursor: Cursor = None,
    url: Url = DEFAULT_URL,
    key: Key = "",
    as_json: AsJson = False,
) -> None:
    """List sessions, the one with the newest stream first."""
    if session is not None:
        list_(session=session, limit=limit, cursor=cursor, url=url, key=key, as_json=as_json)
        return
    with connected(url, key) as client:
        page = _page(client, "/v1/sessions", {"limit": limit, "cursor": cursor})
    if as_json:
        print_json(page)
        return
    print_table(
        ("SESSION", "NEWEST STREAM (UTC)"),
        [(one["id"], _moment(one["last_stream_at"])) for one in page["sessions"]],
        none="No sessions yet.",
        is_whole=page["next"] is None,
    )
    _say_more(page)


def views(stream: StreamId, url: Url = DEFAULT_URL, key: Key = "", as_json: AsJson = False) -> None:
    """Show who was connected to a stream, and which events each was sent."""
    with connected(url, key) as client:
        found: list[dict[str, Any]] = []
        page: dict[str, Any] = {"next": None}
        while True:
            page = _page(client, stream_path(stream, "/views"), {"cursor": page["next"]})
            found += page["views"]
            if page["next"] is None:
                break
    if as_json:
        print_json({"views": found, "next": None})
        return
    print_table(
        (
            *("FROM (UTC)", "TO (UTC)", "WHO", "READ AS", ">FIRST", ">LAST", "ENDED", ">CURSOR"),
            *(">TIMES", "ADDRESS", "USER AGENT"),
        ),
        [list(_view_row(view)) for view in found],
        none="Nobody has followed or read this stream.",
    )


def export(
    stream: StreamId,
    redacted: Annotated[bool, typer.Option("--redacted", help="with the server's masks applied")] = False,
    url: Url = DEFAULT_URL,
    key: Key = "",
) -> None:
    """Print a stream's whole log as NDJSON, its seal last."""
    with connected(url, key) as client:
        sys.stdout.buffer.write(client.export(stream, redacted=redacted))


def erase(
    stream: Annotated[str | None, typer.Argument(metavar="[ID]", help="the stream to erase")] = None,
    user: Annotated[str | None, typer.Option(help="a person: all streams of this user")] = None,
    session: Annotated[str | None, typer.Option(help="all streams of this session")] = None,
    reason: Annotated[str | None, typer.Option(help="with --user or --session; kept for good, so name nobody")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    url: Url = DEFAULT_URL,
    key: Key = "",
) -> None:
    """Erase a finished stream's content, or a person, everywhere and for good.

    Tombstones and their seals stay. With --user and --session, what runs is cancelled first.
    """
    if sum(one is not None for one in (stream, user, session)) != 1:
        fail("say what to erase: a stream's ID, --user U, or --session S", code=2)
    if stream is not None and reason is not None:
        fail("--reason is for --user and --session", code=2)
    with connected(url, key) as client:
        if stream is not None:
            _erase_stream(client, stream, yes)
        else:
            _erase_person(client, {"user_id": user, "session_id": session, "reason": reason}, yes)


def _erase_stream(client: Client, stream: str, yes: bool) -> None:
    if not yes:  # whoever answers yes should know of what, and that there is something
        found = client.call("GET", stream_path(stream))
        if found["state"] in RUNNING:
            fail(f"{stream} is still {found['state']}: end it first with lastevent cancel {stream}", code=1)
        told = ", ".join(filter(None, [found["user_id"], f"created {_moment(found['created_at'])} UTC"]))
        if not typer.confirm(f"Erase {clean(stream)} ({clean(told)}) for good?", err=True):
            raise typer.Exit(1)
    is_done = client.erase(stream)
    print("erased" if is_done else "erased for every viewer; the archive follows within moments")


def _erase_person(client: Client, order: dict[str, str | None], yes: bool) -> None:
    body = {name: value for name, value in order.items() if value is not None}
    whose = f"user {body['user_id']}" if "user_id" in body else f"session {body['session_id']}"
    if not yes and not typer.confirm(f"Erase all streams of {clean(whose)} for good, running ones too?", err=True):
        raise typer.Exit(1)
    erasure = client.call("POST", "/v1/erasures", json=body)
    deadline = time.monotonic() + ERASURE_WAIT_S
    while erasure["state"] != "done" and time.monotonic() < deadline:
        time.sleep(ERASURE_POLL_S)
        erasure = client.call("GET", f"/v1/erasures/{erasure['id']}")
    if erasure["state"] == "done":
        print(f"erased: {_streams(erasure['erased'])} (erasure {erasure['id']})")
    else:
        print(f"ordered: a worker erases, {_streams(erasure['erased'])} so far (GET /v1/erasures/{erasure['id']})")


def _streams(count: int) -> str:
    return "1 stream" if count == 1 else f"{count:,} streams"


def deeds(
    what: Annotated[str | None, typer.Option(help="only such: created, cancelled, erased, key_made …")] = None,
    who: Annotated[str | None, typer.Option(help="only this caller's: key:…, user:…")] = None,
    stream: Annotated[str | None, typer.Option(help="only about this stream")] = None,
    since: Annotated[str | None, typer.Option(help="done then (UTC) or later: 2026-11-21, 2026-11-21T10:00")] = None,
    until: Annotated[str | None, typer.Option(help="done then or before; a day is all of it")] = None,
    limit: Limit = 20,
    cursor: Cursor = None,
    url: Url = DEFAULT_URL,
    key: Key = "",
    as_json: AsJson = False,
) -> None:
    """Show who did what: started, cancelled, erased, made a key; newest first."""
    which = {"what": what, "who": who, "stream": stream, "limit": limit, "cursor": cursor}
    which |= {"after": _time(since, "--since"), "before": _time(until, "--until", is_end=True)}
    with connected(url, key) as client:
        page = _page(client, "/v1/deeds", which)
    if as_json:
        print_json(page)
        return
    print_table(
        ("AT (UTC)", "WHO", "WHAT", "STREAM", "ADDRESS", "DETAIL"),
        [_deed_row(deed) for deed in page["deeds"]],
        none="No deeds match.",
        is_whole=page["next"] is None,
    )
    _say_more(page)


# -- whether it is as it was ---------------------------------------------------------------------------------


def verify(
    stream: Annotated[str | None, typer.Argument(metavar="[ID]", help="the stream to check, by its server")] = None,
    everything: Annotated[bool, typer.Option("--all", help="check the whole archive, in its database")] = False,
    file: Annotated[Path | None, typer.Option("--export", help="check this exported file; needs no server")] = None,
    public_keys: Annotated[
        Path | None, typer.Option("--key", help="the public keys, PEM; default: LASTEVENT_SEAL_PUBLIC_KEYS")
    ] = None,
    heads: Annotated[
        str | None, typer.Option("--heads", help="a file or URL of heads; default: LASTEVENT_SEAL_HEADS")
    ] = None,
    authority: Annotated[
        Path | None, typer.Option("--tsa", help="with --all: root certificates, PEM, of who stamps the heads")
    ] = None,
    data_dir: Annotated[Path, typer.Option(help="the data directory of `lastevent up`")] = Path(".lastevent"),
    url: Url = DEFAULT_URL,
    api_key: ApiKey = "",
    as_json: AsJson = False,
) -> None:
    """Check a stream, the whole archive, or an exported file against the seals.

    Exit code 0: nothing has changed. 1: something has. 2: it could not be checked. Beside a SQLite archive the public
    keys and the heads are found in its folder: the owner of that folder can change both, so give your own copies.
    """
    if sum((stream is not None, everything, file is not None)) != 1:
        fail("say what to verify: a stream's ID, --all, or --export FILE", code=2)
    if authority and not everything:
        fail("--tsa is for --all", code=2)
    if stream is not None and (public_keys or heads):
        fail("--key and --heads are for --all and --export; a server's key is --api-key", code=2)
    if file is not None:
        _verify_export(file, public_keys, as_json)
    elif everything:
        _verify_all(_settings_with(data_dir, public_keys, heads), as_json, redis_url=_redis_url(), authority=authority)
    else:
        _verify_stream(str(stream), url, api_key, as_json)


def _verify_stream(stream: str, url: str, key: str, as_json: bool) -> None:
    with connected(url, key, key_option="--api-key") as client:
        checked = client.call("GET", stream_path(stream, "/verify"))
    if as_json:
        print_json(checked)
    else:
        print(_VERDICTS[checked["verdict"]])
        _print_seal(stream, checked["seal"] or {})
        if erasure := checked["erasure"]:
            by = erasure["by"] or "nobody that its seal names"
            print(f"  erased by {clean(by)} ({clean(erasure['reason'])}), seal {erasure['number']}")
        for finding in checked["findings"]:
            print(f"  {finding['what']}: {clean(finding['detail'])}")
    raise typer.Exit(_EXIT_CODES[checked["verdict"]])


def _verify_all(settings: Settings, as_json: bool, *, redis_url: str | None, authority: Path | None) -> None:
    # What follows loads SQLAlchemy: not for every command.
    from broker.archive.audit import Audit, Finding, Report
    from broker.archive.copies import check_copies
    from broker.archive.database import Database
    from broker.archive.heads import HeadsUnavailable
    from broker.archive.reader import ArchiveReader
    from broker.archive.setup import find_heads, find_public_keys, place_of_heads
    from broker.archive.signing import BadKey
    from broker.archive.stamps import check_stamp, load_roots, open_stamps
    from broker.errors import ArchiveUnavailable, RedisUnavailable
    from broker.log.keys import Keys
    from broker.log.stream_log import StreamLog
    from broker.store.connect import connect

    async def compare(database: Database) -> tuple[int | None, list[Finding]]:
        if redis_url is None:
            return None, []
        redis = connect(redis_url)
        try:
            return await check_copies(StreamLog(redis, Keys(settings.key_prefix)), ArchiveReader(database))
        except RedisUnavailable:
            return None, []
        finally:
            await redis.aclose()

    async def audit() -> tuple[Report, int | None]:
        database = Database(settings.archive_url)
        try:
            report = await Audit(database, keys, heads, stamps).run()
            copies, differences = await compare(database)
            return report._replace(findings=report.findings + differences), copies
        finally:
            await database.aclose()

    try:
        keys, heads = find_public_keys(settings), find_heads(settings).read()
        if not keys:
            fail(NO_KEYS, code=2)
        roots = load_roots(authority) if authority else []
        stamps = [(stamp, check_stamp(stamp, roots)) for stamp in open_stamps(place_of_heads(settings)).read()]
        report, copies = asyncio.run(audit())
    except (BadKey, HeadsUnavailable, ValueError) as error:
        fail(str(error), code=2)
    except ArchiveUnavailable as error:
        fail(f"the archive cannot be read, so it was not checked ({error.__cause__})", code=2)
    if report.headless:
        tenants = ", ".join(report.headless)
        note(f"No head is known for {clean(tenants)}: cannot check whether the newest seals were cut off (--heads).")
    if good := [stamp for stamp, problem in stamps if problem is None]:
        signed = "" if authority else "; who signed it was not checked (--tsa)"
        note(f"The newest of {len(stamps)} time stamps of the heads is of {good[-1].at:%Y-%m-%d %H:%M} UTC{signed}.")
    if copies is None and redis_url is None:
        note(f"What Redis still has of these streams was not compared: set {PREFIX}REDIS_URL.", style="dim")
    elif copies is None:
        note("Redis cannot be reached: what it still has of these streams was not compared.")
    if as_json:
        findings = [finding._asdict() for finding in report.findings]
        print_json({**report._asdict(), "copies": copies, "findings": findings})
    else:
        counts = f"{report.streams:,} streams, {report.views:,} viewers' records, {report.deeds:,} deeds"
        print(f"{counts}, {report.seals:,} seals")
        if copies is not None:
            print(f"{copies:,} of these streams are still in Redis")
        for finding in report.findings[:ALL_FINDINGS]:
            seal = f"seal {finding.seal}" if finding.seal else None
            place = " ".join(part for part in (finding.tenant, finding.stream, seal) if part)
            print(f"  {finding.what}: {clean(finding.detail)} ({clean(place)})")
        if len(report.findings) > ALL_FINDINGS:
            print(f"  … and {len(report.findings) - ALL_FINDINGS:,} more; --json has all")
        print(f"CHANGED: {len(report.findings):,} findings" if report.findings else "nothing has changed")
    is_partial = report.headless or (copies is None and redis_url is not None)
    raise typer.Exit(1 if report.findings else 2 if is_partial else 0)


def _verify_export(file: Path, public_keys: Path | None, as_json: bool) -> None:
    from broker.archive.export import check_export
    from broker.archive.signing import BadKey, load_public_keys

    path = public_keys or read_settings().seal_public_keys
    if path is None:
        fail(NO_KEYS, code=2)
    try:
        checked = check_export(file.read_bytes(), load_public_keys(path))
    except BadKey as error:
        fail(str(error), code=2)
    except OSError as error:
        fail(f"{file} cannot be read ({error.strerror})", code=2)
    if as_json:
        print_json(checked._asdict())
    else:
        print(_VERDICTS[checked.verdict])
        _print_seal(checked.statement.get("stream"), checked.statement)
        for finding in checked.findings:
            print(f"  {finding}")
        if checked.masks:
            print(f"  masked: {clean(', '.join(map(str, checked.masks)))}")
    raise typer.Exit(_EXIT_CODES[checked.verdict])


_VERDICTS = {
    "verified": "verified: it is as it was sealed",
    "erased": "erased: its content is gone, and the seals say so",
    "redacted": "redacted: the seal is genuine; what it speaks of was masked here, and cannot be checked with it",
    "not_sealed": "not sealed: there is nothing to check it against",
    "broken": "CHANGED: it is not as it was sealed",
    "differs": "DIFFERS: the archive is as it was sealed, but Redis shows viewers something else",
}


_EXIT_CODES = {"verified": 0, "erased": 0, "broken": 1, "differs": 1, "redacted": 2, "not_sealed": 2}


def _print_seal(stream: str | None, seal: dict[str, Any]) -> None:
    if stream and "number" in seal:
        place = f"stream {stream}, seal {seal['number']} of {seal['tenant']}, key {seal['key']}"
        print(f"  {clean(place)}")


def _redis_url() -> str | None:
    """The Redis to compare with: only one that was named. The default address may be anybody's."""
    settings = read_settings()
    return settings.redis_url if "redis_url" in settings.model_fields_set else None


def _settings_with(data_dir: Path, public_keys: Path | None, heads: str | None) -> Settings:
    settings, beside = read_settings(), None
    if not settings.archive_url:
        if not (data_dir / "archive.db").exists():
            fail(f"there is no archive in {data_dir}: set {PREFIX}ARCHIVE_URL, or give --data-dir", code=2)
        beside = archive_url(data_dir)
    try:
        return with_options(
            settings,
            archive_url=("--data-dir", beside),
            seal_public_keys=("--key", public_keys),
            seal_heads=("--heads", heads),
        )
    except SettingsError as error:
        fail(str(error), code=2)


# -- rows --------------------------------------------------------------------------------------------------


def _page(client: Client, path: str, which: dict[str, Any]) -> Any:
    return client.call("GET", path, params=which)


def _say_more(page: dict[str, Any]) -> None:
    if page["next"]:
        note(f"More: --cursor {page['next']}", style="dim")


def _stream_row(stream: dict[str, Any]) -> Iterator[str]:
    yield stream["id"]
    yield "erased" if stream["erased_at"] else stream["state"]
    yield _moment(stream["created_at"])
    yield stream["user_id"] or "-"
    yield stream["session_id"] or "-"
    yield stream["model"] or "-"
    yield _lasted(stream["started_at"], stream["first_text_at"])
    yield _lasted(stream["started_at"], stream["finished_at"])
    yield f"{stream['last_event_id']:,}"


def _deed_row(deed: dict[str, Any]) -> tuple[str, ...]:
    detail = ", ".join(f"{name} {_deed_value(value)}" for name, value in (deed["detail"] or {}).items())
    return (_moment(deed["at"]), deed["who"], deed["what"], deed["stream"] or "", deed["address"] or "", detail)


def _deed_value(value: Any) -> str:
    return "none" if value is None else " ".join(value) if isinstance(value, list) else str(value)


def _view_row(view: dict[str, Any]) -> Iterator[str]:
    yield _moment(view["opened_at"])
    yield _moment(view["closed_at"]) if view["closed_at"] else "still there"
    yield view["who"]
    yield view["format"] or "-"
    yield "-" if view["first_id"] is None else f"{view['first_id']:,}"
    yield "-" if view["last_id"] is None else f"{view['last_id']:,}"
    yield view["how"] or "-"
    yield "-" if view["requested"] is None else f"{view['requested']:,}"
    yield f"{view['count']:,}"
    yield view["forwarded_for"] or view["address"] or "-"
    yield view["user_agent"] or "-"


def _moment(time: str) -> str:
    """In UTC, as everywhere: in the API, the seals, the console."""
    return datetime.fromisoformat(time).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def _lasted(begin: str | None, end: str | None) -> str:
    if begin is None or end is None:
        return "-"
    seconds = (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds()
    return f"{seconds:.2f} s" if seconds < 60 else f"{seconds / 60:.1f} min"


def _time(text: str | None, option: str, *, is_end: bool = False) -> str | None:
    """What a person writes for a moment, as RFC 3339; without a zone it is UTC, as it is shown. A day is all of it."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        if is_end and len(text) == len("2026-11-21"):
            moment += timedelta(days=1, milliseconds=-1)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return moment.astimezone(UTC).isoformat()
    except (ValueError, OverflowError):
        fail(f"{option}: {clean(text)} is not a date or time; give one such as 2026-11-21 or 2026-11-21T10:00Z", code=2)
