"""What the tests of the journals share: intents, and journals that can crash."""

import asyncio
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from midapi_async import TextToImage
from midapi_async._wire.bodies import fingerprint
from midapi_async.journal import Intent
from midapi_async.journal._store import Store
from midapi_async.journal.sqlite import SQLiteJournal
from midapi_async.requests import Request

T = TypeVar("T")
SCOPE = "https://api.midapi.ai default"
FOX = TextToImage("a red fox in the snow")


def intent(
    request: Request = FOX,
    *,
    intent_id: str | None = None,
    scope: str = SCOPE,
    token_hash: str | None = None,
    key: str | None = None,
    metadata: dict[str, str] | None = None,
    supersedes: str | None = None,
) -> Intent:
    """A new intent, with names of its own."""
    return Intent(
        intent_id=intent_id or uuid.uuid4().hex,
        scope=scope,
        request=request,
        fingerprint=fingerprint(request),
        token_hash=token_hash or uuid.uuid4().hex * 2,
        created_at=time.time(),
        key=key,
        metadata=metadata or {},
        supersedes=supersedes,
    )


async def crash(journal: SQLiteJournal) -> None:
    """Leave a journal as a killed process leaves it: its owner's file stays, its lock is gone."""
    if journal._writer is not None:
        await journal._writer.run(_die)
    await journal.aclose()


async def together(
    journal: SQLiteJournal, *calls: Coroutine[object, object, T]
) -> list[T | BaseException]:
    """What came of calls that waited together for their turn, errors included."""
    held = threading.Event()
    block = asyncio.ensure_future(journal._opened().run(lambda _: held.wait(5)))
    waiting = [asyncio.ensure_future(call) for call in calls]
    await asyncio.sleep(0)
    held.set()
    await block
    return await asyncio.gather(*waiting, return_exceptions=True)


def _die(store: Store) -> None:
    owners = store._owners
    if owners.descriptor is not None:
        os.close(owners.descriptor)
    owners.descriptor = owners._mine = None


@contextmanager
def quick_folder() -> Iterator[Path]:
    """A folder for a journal that is synced in no time, where the system has one."""
    memory = "/dev/shm"  # noqa: S108 - a folder of our own in it
    with tempfile.TemporaryDirectory(dir=memory if Path(memory).is_dir() else None) as folder:
        yield Path(folder) / "journal"
