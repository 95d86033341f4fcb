"""What a server has of the archive, by its settings."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path

from redis.asyncio import Redis

from broker.archive.reader import Sealed
from broker.archive.setup import open_archive, open_writer
from broker.archive.signing import PUBLIC_NAME, load_or_make_signer
from broker.archive.writer import finished
from broker.log.meta import new_sid
from broker.log.stream_log import StreamLog
from broker.settings import Settings
from tests.archive.archive import NOW_MS, events_of, meta_of


async def test_a_key_that_is_added_while_a_server_runs_checks_what_it_has_sealed(tmp_path: Path, redis: Redis) -> None:
    public = tmp_path / "public.pem"
    settings = Settings(
        archive_url=f"sqlite:///{tmp_path}/archive.db",
        seal_public_keys=public,
        seal_heads=str(tmp_path / "heads.json"),
    )
    server = open_archive(settings)
    assert server
    async with aclosing(server):
        for name in ("first", "second"):
            folder = tmp_path / name
            load_or_make_signer(folder / "key.pem")
            with public.open("ab") as known:
                known.write((folder / PUBLIC_NAME).read_bytes())
            sid = await archive_one(settings.model_copy(update={"seal_key": folder / "key.pem"}))
            assert (await server.verify(sid, StreamLog(redis))).verdict == "verified", name


async def test_a_seal_that_is_made_during_a_verification_is_not_taken_for_one_that_was_cut_off(
    tmp_path: Path, redis: Redis
) -> None:
    """The archiver seals another stream just when a server has read the one that it verifies."""
    settings = Settings(archive_url=f"sqlite:///{tmp_path}/archive.db")
    sid = await archive_one(settings)
    server = open_archive(settings)
    assert server
    read = server.reader.sealed

    async def read_before_another_is_sealed(sid: str) -> Sealed | None:
        sealed = await read(sid)
        await archive_one(settings)
        return sealed

    server.reader.sealed = read_before_another_is_sealed  # type: ignore[method-assign]
    async with aclosing(server):
        verdict = await server.verify(sid, StreamLog(redis))
    assert (verdict.verdict, verdict.is_head_known) == ("verified", True)


async def archive_one(settings: Settings) -> str:
    sid = new_sid()
    writer = open_writer(settings)
    async with aclosing(writer.database):
        await writer.add([finished(sid, meta_of(sid, 5), events_of(sid, 5))], NOW_MS)
    return sid
