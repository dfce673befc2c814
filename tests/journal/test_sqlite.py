"""What only the SQLite journal does: sharing a folder, group commit, pruning, hiding prompts."""

import asyncio
import gc
import sqlite3
import threading
from contextlib import aclosing
from pathlib import Path

import attrs
import pytest

from midapi_async import (
    ExtendVideo,
    ImageToImage,
    ImageToVideo,
    OmniReference,
    StyleReference,
    TextToImage,
    Upscale,
    Vary,
)
from midapi_async._wire.bodies import fingerprint
from midapi_async._wire.tokens import new_token, token_hash
from midapi_async.errors import JournalError
from midapi_async.journal import BOUGHT, State, _forks, _locks, _rows, _store
from midapi_async.journal.sqlite import SQLiteJournal
from midapi_async.requests import Request
from midapi_async.testing import VirtualLoop
from tests.journal.world import FOX, SCOPE, crash, intent, together

URL = "https://example.com/a.png"
DAY = 86_400.0


# ─── rows ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "request_",
    [
        TextToImage('a "red" fox ö 🦊', aspect_ratio="16:9", version="6.1", variety=5),
        ImageToImage("a fox", file_urls=[URL], speed="turbo"),
        StyleReference("a fox", file_urls=[URL, URL], water_mark="w"),
        OmniReference("a fox", file_urls=[URL], ow=7, enable_translation=True),
        ImageToVideo("it runs", file_urls=[URL], hd=True, motion="low", video_batch_size=2),
        ImageToVideo("it runs", file_urls=[URL]),
        Upscale("t1", image_index=3),
        Vary("t1", image_index=4, water_mark="w"),
        ExtendVideo("t1", index=1, prompt="on it goes"),
        ExtendVideo("t1", index=0),
    ],
    ids=repr,
)
async def test_a_row_as_it_was_written(
    sqlite: SQLiteJournal, other: SQLiteJournal, request_: Request
) -> None:
    """Another process reads the same row, with the same request."""
    mine = intent(request_, key="order 17", metadata={"a": "ö\n", "": '"'})
    await sqlite.claim(mine)
    assert mine == await other.find(intent_id=mine.intent_id)
    assert await other.rows(SCOPE) == [mine]


async def test_a_request_that_this_release_refuses(
    sqlite: SQLiteJournal, other: SQLiteJournal, caplog: pytest.LogCaptureFixture
) -> None:
    """Its row is read all the same, without it."""
    row = await sqlite.claim(intent())
    for text in ('{"taskType":"mj_opera"}', "{"):
        await on(sqlite, "UPDATE intents SET request = ?", text)
        found = await other.find(intent_id=row.intent_id)
        assert attrs.evolve(row, request=None) == found
        assert "cannot be read back" in caplog.text


async def test_i5_what_is_in_the_files(folder: Path, sqlite: SQLiteJournal) -> None:
    """Of a token only its hash; without prompts, nothing that a prompt could be guessed from."""
    token = new_token()
    await sqlite.claim(intent(token_hash=token_hash(token)))
    silent = SQLiteJournal(folder, store_prompts=False)
    hidden = TextToImage("a secret wedding dress")
    await silent.claim(intent(hidden))
    await silent.aclose()
    files = b"".join(each.read_bytes() for each in folder.rglob("*") if each.is_file())
    assert token_hash(token).encode() in files
    assert FOX.prompt.encode() in files
    assert token.encode() not in files
    assert b"wedding" not in files
    assert fingerprint(hidden).encode() not in files


async def test_keys_without_prompts(folder: Path, sqlite: SQLiteJournal) -> None:
    """The same request is known again, also by another process; another one is not."""
    silent = SQLiteJournal(folder, store_prompts=False)
    mine = await silent.claim(intent(key="k"))
    for journal in (silent, sqlite):
        same = await journal.find(key=(SCOPE, "k"), fingerprint=mine.fingerprint)
        assert same is not None
        assert mine.fingerprint == same.fingerprint
        assert mine.fingerprint == (await journal.claim(intent(key="k"))).fingerprint
        wolf = intent(TextToImage("a wolf"), key="k")
        another = await journal.find(key=(SCOPE, "k"), fingerprint=wolf.fingerprint)
        assert another is not None
        assert another.fingerprint not in (wolf.fingerprint, mine.fingerprint)
        assert wolf.fingerprint != (await journal.claim(wolf)).fingerprint
    await silent.aclose()


async def test_this_process_knows_what_it_submits(folder: Path) -> None:
    """While it does, rows have their request though it is not stored; afterwards they have not."""
    silent = SQLiteJournal(folder, store_prompts=False)
    row = await silent.claim(intent())
    assert (await silent.advance(row.intent_id, State.ACCEPTED, task_id="t")).request == FOX
    assert (await silent.advance(row.intent_id, taken=True)).request is None
    assert not silent._senders
    await silent.aclose()


async def test_a_token_is_unique(sqlite: SQLiteJournal) -> None:
    """A second intent with it is not written."""
    first = await sqlite.claim(intent())
    with pytest.raises(JournalError, match="UNIQUE"):
        await sqlite.claim(intent(token_hash=first.token_hash))
    assert await sqlite.rows(SCOPE) == [first]
    assert list(sqlite._senders) == [first.intent_id]


async def test_text_that_cannot_be_stored(sqlite: SQLiteJournal) -> None:
    """Half a character is an error like any other."""
    with pytest.raises(JournalError, match="cannot hold this text"):
        await sqlite.find(intent_id="\ud800")
    with pytest.raises(JournalError, match="cannot hold this text"):
        await sqlite.claim(intent(key="\ud800"))
    await sqlite.claim(intent())


# ─── several at once ─────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every COMMIT; and no statement runs in the thread of the tests, which has the loop."""
    seen: list[str] = []
    loop_thread = threading.get_ident()

    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *args: object) -> sqlite3.Cursor:
            assert threading.get_ident() != loop_thread
            if sql == "COMMIT":
                seen.append(sql)
            return super().execute(sql, *args)  # type: ignore[arg-type]  # passed on

        def close(self) -> None:
            assert threading.get_ident() != loop_thread
            super().close()

    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3,
        "connect",
        lambda *args, **options: connect(*args, factory=Connection, **options),
    )
    return seen


async def test_group_commit(commits: list[str], sqlite: SQLiteJournal) -> None:
    """Who waits while a commit runs shares the next one; the loop's thread touches no database."""
    await sqlite.claim(intent())
    await sqlite.rows(SCOPE)  # behind what it tidies by itself
    before = len(commits)
    await together(sqlite, *(sqlite.claim(intent()) for _ in range(100)))
    assert len(commits) - before == 1
    assert len(await sqlite.rows(SCOPE)) == 101
    async with aclosing(sqlite.changes()) as changes:
        await anext(changes)
    await sqlite.take_over(SCOPE)
    await sqlite.check()
    await sqlite.prune()
    await sqlite.aclose()


async def test_one_bad_apple(sqlite: SQLiteJournal) -> None:
    """What fails of one caller takes nothing from the others in the same transaction."""
    double = "ab" * 32
    calls = [intent(token_hash=double if n in (3, 7, 8) else None) for n in range(20)]
    got = await together(sqlite, *(sqlite.claim(one) for one in calls))
    failed = [n for n, one in enumerate(got) if isinstance(one, JournalError)]
    assert failed == [7, 8]
    assert len(await sqlite.rows(SCOPE)) == 18
    moved = await together(
        sqlite, *(sqlite.advance(call.intent_id, State.REFUSED) for call in calls)
    )
    assert failed == [n for n, one in enumerate(moved) if isinstance(one, JournalError)]


async def test_nothing_stays_of_what_fails_halfway(sqlite: SQLiteJournal) -> None:
    """An intent that cannot be written takes no key and supersedes nothing, alone or not."""
    old = await sqlite.claim(intent(key="k"))
    old = await sqlite.advance(old.intent_id, State.UNKNOWN)
    for count in (1, 3):
        calls = [
            sqlite.claim(intent(key="k", supersedes=old.intent_id, token_hash=old.token_hash)),
            *(sqlite.claim(intent()) for _ in range(count - 1)),
        ]
        failed, *others = await together(sqlite, *calls)
        assert isinstance(failed, JournalError)
        assert not [one for one in others if isinstance(one, BaseException)]
        assert old == await sqlite.find(key=(SCOPE, "k"))


async def test_l9_a_caller_that_is_cancelled_before_its_turn(sqlite: SQLiteJournal) -> None:
    """Nothing of it is written; the others are."""
    await sqlite.rows(SCOPE)
    held = threading.Event()
    assert sqlite._writer is not None
    block = asyncio.ensure_future(sqlite._writer.run(lambda _: held.wait(5)))
    await asyncio.sleep(0)
    claims = [asyncio.ensure_future(sqlite.claim(intent())) for _ in range(5)]
    await asyncio.sleep(0)
    claims[0].cancel()
    claims[3].cancel()
    await asyncio.sleep(0)
    held.set()
    got = await asyncio.gather(block, *claims, return_exceptions=True)
    assert [not isinstance(one, asyncio.CancelledError) for one in got] == [
        True,
        False,
        True,
        True,
        False,
        True,
    ]
    assert len(await sqlite.rows(SCOPE)) == 3


async def test_l9_closing_that_is_cancelled(sqlite: SQLiteJournal, folder: Path) -> None:
    """It lets go all the same."""
    await sqlite.claim(intent())
    held = threading.Event()
    assert sqlite._writer is not None
    block = asyncio.ensure_future(sqlite._writer.run(lambda _: held.wait(5)))
    closing = asyncio.ensure_future(sqlite.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.sleep(0)
    held.set()
    await asyncio.gather(block, closing, return_exceptions=True)
    await sqlite.rows(SCOPE)
    assert list((folder / "owners").iterdir()) == []


@pytest.mark.real_time
def test_l10_two_loops_at_once(folder: Path) -> None:
    """Two threads, each with a loop of its own, may share one journal."""
    journal = SQLiteJournal(folder)
    told: list[int] = []

    async def main() -> None:
        async with aclosing(journal.changes()) as changes:
            await anext(changes)
            rows = await asyncio.gather(*(journal.claim(intent(key=f"{n}")) for n in range(50)))
            await journal.claim(intent(scope="elsewhere"))
            await asyncio.wait_for(anext(changes), 30)
            told.append(len({row.intent_id for row in rows}))

    threads = [threading.Thread(target=lambda: asyncio.run(main())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == [50, 50]

    async def close() -> None:
        assert len(await journal.rows(SCOPE)) == 50
        await journal.aclose()

    asyncio.run(close())


# ─── two on one folder ───────────────────────────────────────────────────────────────────────────


async def test_s15_two_journals_one_key(sqlite: SQLiteJournal, other: SQLiteJournal) -> None:
    """One of them has it, and both say which."""
    both = (sqlite, other)
    claims = [journal.claim(intent(key=f"k{n}")) for n in range(30) for journal in both]
    got = await asyncio.gather(*claims)
    assert len({row.intent_id for row in got}) == 30
    assert len(await other.rows(SCOPE)) == 30


async def test_changes_of_others(sqlite: SQLiteJournal, other: SQLiteJournal) -> None:
    """They are seen within a quarter of a second."""
    row = await other.claim(intent())
    now = asyncio.get_running_loop().time
    async with aclosing(sqlite.changes()) as changes:
        await anext(changes)
        for to in (State.UNKNOWN, State.DISMISSED):
            wait = asyncio.ensure_future(anext(changes))
            await asyncio.sleep(1)
            started = now()
            await other.advance(row.intent_id, to)
            await wait
            assert now() - started <= 0.25
            found = await sqlite.find(intent_id=row.intent_id)
            assert found is not None
            assert to is found.state


async def test_nobody_watches_nobody_looks(
    commits: list[str], sqlite: SQLiteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an open iterator there is no polling."""
    looks: list[int] = []
    version = _store.Store.version

    def counted(store: _store.Store) -> tuple[int, int]:
        looks.append(1)
        return version(store)

    monkeypatch.setattr(_store.Store, "version", counted)
    async with aclosing(sqlite.changes()) as changes:
        await anext(changes)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(changes), 10)
    assert 35 < len(looks) < 45
    await asyncio.sleep(3600)
    assert len(looks) < 45


async def test_s14_a_sender_that_died(
    sqlite: SQLiteJournal, other: SQLiteJournal, folder: Path
) -> None:
    """What it was sending is unknown to whoever looks, and whoever waits for it is told."""
    rows = [await other.claim(intent(key=f"k{n}")) for n in range(4)]
    await sqlite.claim(intent())
    assert len(await sqlite.rows(SCOPE, State.SENDING)) == 5
    async with aclosing(sqlite.changes()) as changes:
        await anext(changes)
        wait = asyncio.ensure_future(anext(changes))
        await asyncio.sleep(1)
        assert not wait.done()
        await crash(other)
        await wait
    assert len(await sqlite.rows(SCOPE, State.SENDING)) == 1
    assert [row.intent_id for row in rows] == [
        row.intent_id for row in await sqlite.rows(SCOPE, State.UNKNOWN)
    ]


@pytest.mark.parametrize("way", ["find", "rows", "claim", "supersede", "take_over"])
async def test_s14_each_way_to_see_it(
    sqlite: SQLiteJournal, other: SQLiteJournal, way: str
) -> None:
    """A dead sender's row is nowhere seen as being sent."""
    row = await other.claim(intent(key="k"))
    await crash(other)
    if way == "find":
        found = await sqlite.find(key=(SCOPE, "k"))
    elif way == "rows":
        (found,) = await sqlite.rows(SCOPE)
    elif way == "claim":
        found = await sqlite.claim(intent(key="k"))
    elif way == "supersede":
        new = intent(key="k", supersedes=row.intent_id)
        assert new == await sqlite.claim(new)
        found = await sqlite.find(intent_id=row.intent_id)
    else:
        assert await sqlite.take_over(SCOPE) == []
        found = await sqlite.find(intent_id=row.intent_id)
    assert found is not None
    assert row.intent_id == found.intent_id
    assert (State.SUPERSEDED if way == "supersede" else State.UNKNOWN) is found.state


async def test_taking_over(sqlite: SQLiteJournal, other: SQLiteJournal, folder: Path) -> None:
    """The rows of the dead are ours, once; those of the living are theirs."""
    bought = []
    for journal in (sqlite, other):
        row = await journal.claim(intent())
        bought.append(row.intent_id)
        await journal.advance(row.intent_id, State.ACCEPTED, task_id=row.intent_id)
    elsewhere = await other.claim(intent(scope="elsewhere"))
    for journal, name in zip((sqlite, other), bought, strict=True):
        assert [row.intent_id for row in await journal.take_over(SCOPE)] == [name]
    await crash(other)
    assert len(list((folder / "owners").iterdir())) == 2
    assert bought == [row.intent_id for row in await sqlite.take_over(SCOPE)]
    assert len(list((folder / "owners").iterdir())) == 1
    assert await other.take_over(SCOPE) == []
    assert await other.take_over("elsewhere") == []
    assert [row.intent_id for row in await other.rows("elsewhere", State.UNKNOWN)] == [
        elsewhere.intent_id
    ]


async def test_who_only_reads_owns_nothing(
    sqlite: SQLiteJournal, other: SQLiteJournal, folder: Path
) -> None:
    """A short look from a command line leaves no trace."""
    await sqlite.claim(intent())
    await other.rows(SCOPE)
    assert len(list((folder / "owners").iterdir())) == 1
    assert (await other.check()).owners == 1


async def test_what_is_no_owner_stays(sqlite: SQLiteJournal, folder: Path) -> None:
    """Only files that are named as owners are swept."""
    await sqlite.claim(intent())
    (folder / "owners" / "README").write_text("mine")
    (folder / "owners" / ("0" * 32)).write_text("")
    await sqlite.take_over(SCOPE)
    assert (folder / "owners" / "README").exists()
    assert len(list((folder / "owners").iterdir())) == 2


# ─── what was over long ago ──────────────────────────────────────────────────────────────────────


async def test_pruning(sqlite: SQLiteJournal) -> None:
    """What is over goes; what is unknown, running or not taken stays, however old it is."""
    names: dict[str, str] = {}
    for key in (None, "k"):
        for state in (*State, "untaken"):
            row = await sqlite.claim(intent(key=key and f"{key} {state}"))
            names[f"{key} {state}"] = row.intent_id
            if state is State.SENDING:
                continue
            first = State.REFUSED if state is State.REFUSED else State.UNKNOWN
            bought = state in {*BOUGHT, "untaken"}
            await sqlite.advance(
                row.intent_id,
                State.ACCEPTED if bought else first,
                task_id=(f"t {row.intent_id}".replace(" ", "") if bought else None),
            )
            await sqlite.advance(
                row.intent_id, State(state) if state != "untaken" else State.SUCCEEDED
            )
            await sqlite.advance(row.intent_id, taken=state in (State.SUCCEEDED, State.FAILED))
    kept = {"sending", "accepted", "called_back", "unknown", "untaken"}
    assert await sqlite.prune() == 0
    await age(sqlite, 17 * DAY)
    assert await sqlite.prune() == 10
    assert await sqlite.prune(older_than=0) == 0
    expected = [name for told, name in names.items() if told.split()[1] in kept]
    assert [row.intent_id for row in await sqlite.rows(SCOPE)] == expected
    report = await sqlite.check()
    assert report.problems == ()
    assert report.spent_keys == 4
    states = ("SENDING", "ACCEPTED", "CALLED_BACK", "UNKNOWN", "SUCCEEDED")
    assert {State[name]: 2 for name in states} == report.counts


async def test_a_key_stays_spent(sqlite: SQLiteJournal) -> None:
    """After 17 days the same key still names its task, and a new intent does not get it."""
    row = await sqlite.claim(intent(key="k", metadata={"a": "b"}))
    await sqlite.advance(row.intent_id, State.ACCEPTED, task_id="t")
    before = await sqlite.advance(row.intent_id, State.SUCCEEDED, taken=True)
    await age(sqlite, 17 * DAY)
    assert await sqlite.prune() == 1
    tombstone = attrs.evolve(before, request=None, metadata={}, token_hash=None)
    for found in (
        await sqlite.find(key=(SCOPE, "k")),
        await sqlite.find(task_id="t"),
        await sqlite.claim(intent(key="k")),
        await sqlite.advance(row.intent_id, State.SUCCEEDED, taken=True),
    ):
        assert tombstone == found
    assert await sqlite.find(token_hash=row.token_hash) is None
    assert await sqlite.rows(SCOPE) == []
    assert await sqlite.take_over(SCOPE) == []


async def test_a_refused_key_is_free_again(sqlite: SQLiteJournal) -> None:
    """Nothing was bought with it, so nothing needs to be remembered."""
    row = await sqlite.claim(intent(key="k"))
    await sqlite.advance(row.intent_id, State.REFUSED)
    await age(sqlite, 17 * DAY)
    assert await sqlite.prune() == 1
    assert await sqlite.find(intent_id=row.intent_id) is None


async def test_l11_pruning_by_itself(
    sqlite: SQLiteJournal, other: SQLiteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A journal in use forgets what is over, with nobody asking, and in steps."""
    monkeypatch.setattr(_rows, "_PRUNED_AT_ONCE", 3)
    rows = await asyncio.gather(*(sqlite.claim(intent()) for _ in range(10)))
    await asyncio.gather(*(sqlite.advance(row.intent_id, State.REFUSED) for row in rows))
    await age(sqlite, 17 * DAY)
    assert len(await other.rows(SCOPE)) == 10
    await other.claim(intent())
    assert len(await other.rows(SCOPE)) == 1


async def test_l11_the_wal_stays_small(
    folder: Path, sqlite: SQLiteJournal, other: SQLiteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written goes into the database file, also if two write by turns."""
    monkeypatch.setattr(_store, "_CHECKPOINT_EVERY", 20)
    sizes = set()
    for _ in range(150):
        for journal in (sqlite, other):
            row = await journal.claim(intent())
            await journal.advance(row.intent_id, State.REFUSED)
        sizes.add((folder / "journal.sqlite-wal").stat().st_size)
    assert max(sizes) < 1_500_000
    assert (folder / "journal.sqlite").stat().st_size > 100_000
    assert len(await sqlite.rows(SCOPE)) == 300


async def test_a_large_wal_that_somebody_left(
    folder: Path, sqlite: SQLiteJournal, other: SQLiteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one who writes tidies it up."""
    for _ in range(20):
        await sqlite.claim(intent())
    monkeypatch.setattr(_store, "_LARGE_WAL", 1000)
    before = (folder / "journal.sqlite").stat().st_size
    await other.claim(intent())
    await other.rows(SCOPE)
    assert before < (folder / "journal.sqlite").stat().st_size


# ─── letting go ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.real_time
async def test_l7_a_journal_that_nobody_closed(folder: Path) -> None:
    """It says so once, and lets go of its files and its thread under the lock."""
    journal = SQLiteJournal(folder)
    await journal.claim(intent())
    with pytest.warns(ResourceWarning, match="was never closed"):  # noqa: PT031 - both together
        del journal
        gc.collect()
    for _ in range(500):
        if not list((folder / "owners").iterdir()):
            break
        await asyncio.sleep(0.01)
    assert not (folder / "journal.sqlite-wal").exists()


async def test_opening_and_closing_leaves_nothing(folder: Path) -> None:
    """One journal can be closed and used again for ever."""
    journal = SQLiteJournal(folder)
    for n in range(20):
        assert n == len(await journal.rows(SCOPE))
        await journal.claim(intent())
        assert "open" in repr(journal)
        await journal.aclose()
        assert "closed" in repr(journal)
    assert not _forks.opened
    for thread in threading.enumerate():
        if "midapi" in thread.name:
            thread.join(5)  # it is ending; nobody waits for it
            assert not thread.is_alive()


def test_l10_asyncio_run_twice(folder: Path) -> None:
    """A journal may be left open from one loop to the next."""
    journal = SQLiteJournal(folder)

    async def main() -> int:
        await journal.claim(intent())
        return len(await journal.rows(SCOPE))

    assert [VirtualLoop.run(main()) for _ in range(2)] == [1, 2]
    VirtualLoop.run(journal.aclose())


async def test_the_lock_file_of_another_holder(
    sqlite: SQLiteJournal, other: SQLiteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S16. A lock that somebody holds for long is an error that names who; later it goes on."""
    monkeypatch.setattr(_locks, "PATIENCE", 0.2)
    await sqlite.rows(SCOPE)
    assert other._writer is None
    await other.rows(SCOPE)
    began, held = threading.Event(), threading.Event()

    def hold(store: _store.Store) -> None:
        with store._folder.lock.held():
            began.set()
            held.wait(5)

    assert other._writer is not None
    holding = asyncio.ensure_future(other._writer.run(hold))
    await asyncio.to_thread(began.wait)
    calls = [sqlite.claim(intent()) for _ in range(3)]
    for error in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(error, JournalError)
        assert "journal.lock has been locked for more than 0.2 s by process " in str(error)
    assert await sqlite.rows(SCOPE) == []
    held.set()
    await holding
    await sqlite.claim(intent())


# ─── the tests' own tools ────────────────────────────────────────────────────────────────────────


async def on(journal: SQLiteJournal, statement: str, *values: object) -> None:
    """Do something to the rows behind the journal's back."""
    assert journal._writer is not None
    await journal._writer.write(lambda rows: rows.connection.execute(statement, values))


async def age(journal: SQLiteJournal, seconds: float) -> None:
    """Let everything that is over be so for longer."""
    await on(journal, "UPDATE intents SET over_at = over_at - ?", seconds)
