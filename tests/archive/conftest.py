"""Both databases for each test of the archive, empty; and streams to put into it."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from broker.archive.database import Database
from broker.archive.heads import open_heads
from broker.archive.setup import HEADS_NAME
from broker.archive.signing import PUBLIC_NAME, load_or_make_signer, load_public_keys
from tests.archive.archive import TestArchive
from tests.archive.postgres import USER, connect

DATABASES = ("sqlite", pytest.param("postgresql", marks=pytest.mark.processes))


@pytest.fixture(params=DATABASES)
def archive_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty database, of each kind in turn."""
    return new_archive(request, tmp_path)


def new_archive(request: pytest.FixtureRequest, folder: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{folder}/archive.db"
    socket = request.getfixturevalue("postgres")
    name = f"t{uuid.uuid4().hex}"
    with connect(socket) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"postgresql:///{name}?host={socket}&user={USER}"


@pytest.fixture
async def archive(archive_url: str, tmp_path: Path) -> AsyncIterator[TestArchive]:
    async with open_archive(archive_url, tmp_path) as archive:
        yield archive


@asynccontextmanager
async def open_archive(url: str, folder: Path) -> AsyncIterator[TestArchive]:
    signer = load_or_make_signer(folder / "seal-key.pem")
    archive = TestArchive(
        Database(url), signer, open_heads(str(folder / HEADS_NAME)), load_public_keys(folder / PUBLIC_NAME)
    )
    try:
        yield archive
    finally:
        await archive.database.aclose()
