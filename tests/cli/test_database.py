"""The commands with a journal on PostgreSQL, over a real server."""

import asyncio
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from yarl import URL

from midapi_async import CallbackReceiver, MidAPIClient, SubmissionUnknown
from midapi_async.cli import _checks
from midapi_async.cli._database import judged
from midapi_async.journal.postgres.session import connected
from midapi_async.sandbox import SandboxThread, lose_answer
from tests.cli.conftest import REPOSITORY, Midapi, Ran, only
from tests.journal.test_postgres import pgbouncer
from tests.support import secrets
from tests.support.postgres import Server, as_user, in_memory, new_folder, new_schema, programs
from tests.support.postgres import server as started
from tests.support.waiting import free_port

pytestmark = [pytest.mark.real_time, pytest.mark.midapi_sandbox(time_scale=240)]

PASSWORD = secrets.known("a p@ss/word")  # some characters must be written in another way in a URL
ROLE = "pictures"


@pytest.fixture
def url(postgres: Server) -> Iterator[str]:
    """The address of a new database; its role has a password and no other rights."""
    name, hba = new_schema(), postgres.folder / "pg_hba.conf"
    if ROLE not in (rules := hba.read_text()):
        hba.write_text(f"host all {ROLE} 127.0.0.1/32 scram-sha-256\n{rules}")
        role = f"CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}'"
        asyncio.run(postgres.execute(f"DO $$BEGIN {role}; PERFORM pg_reload_conf(); END$$"))
    asyncio.run(postgres.execute(f"CREATE DATABASE {name} OWNER {ROLE}"))
    yield f"postgresql://{ROLE}:{quote(PASSWORD, safe='')}@127.0.0.1:{postgres.port}/{name}"
    asyncio.run(postgres.execute(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def midapi(midapi: Midapi, midapi_sandbox: SandboxThread) -> Midapi:
    """The command line; nothing that it prints contains the password."""

    def run(*arguments: object) -> Ran:
        ran = midapi(*arguments)
        for text in (ran.out, ran.err):
            assert not secrets.found_in(text), text
            assert quote(PASSWORD, safe="") not in text, text
        return ran

    return run


@pytest.fixture
def unknown(url: str, midapi_sandbox: SandboxThread, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database with a finished intent and an unknown one, named in the environment."""
    monkeypatch.setenv("MIDAPI_JOURNAL", url)
    midapi_sandbox.faults.on("submit", nth=2, do=lose_answer())

    async def fill() -> str:
        async with MidAPIClient(ack="manual") as client:
            await client.generate_and_wait("a red fox", key="one")
            with pytest.raises(SubmissionUnknown) as caught:
                await client.generate_and_wait("a red fox", key="two", metadata={"a": "b"})
            return caught.value.intent_id

    return asyncio.run(fill())


def place_of(url: str) -> str:
    """The URL as it is shown."""
    return f"postgresql://{url.rpartition('@')[2]}"


def test_the_commands_read_a_database(midapi: Midapi, unknown: str, url: str) -> None:
    """By MIDAPI_JOURNAL; by the option; what they call it has no password."""
    lines = midapi("journal", "list").lines
    assert [line.split()[1] for line in lines[1:]] == ["succeeded", "unknown"]
    facts = midapi("journal", "show", unknown[:8], "--json").json
    assert (facts["state"], facts["key"], facts["metadata"]) == ("unknown", "two", {"a": "b"})
    ran = midapi("journal", "check")
    assert ran.lines[0].startswith(f"{place_of(url)}: intact, ")
    assert ran.lines[1:3] == ["1 succeeded", "1 unknown"]
    for option in ("--journal", "--folder"):
        stats = midapi("journal", "stats", "--json", option, url).json
        assert (stats["path"], stats["unknown"], stats["untaken"]) == (place_of(url), 1, 1)
        assert stats["running_programs"] == 0  # this command is none
    assert midapi("journal", "prune").out == "0 removed\n"


def test_the_commands_act_on_a_database(
    midapi: Midapi, unknown: str, url: str, midapi_sandbox: SandboxThread
) -> None:
    """Resume, settle, resubmit, adopt and dismiss."""
    ran = midapi("journal", "resume", "--journal", url)
    assert (ran.code, len(ran.lines)) == (0, 4)
    assert ran.err.count(f"midapi journal list unknown --journal {place_of(url)}") == 1
    assert midapi("journal", "resume").lines == []
    assert midapi("journal", "settle", unknown, "--timeout", "0.1").code == 1
    task_id = midapi("journal", "resubmit", unknown).out.strip()
    assert midapi("task", task_id, "--wait").code == 0
    assert [each.task_id for each in midapi_sandbox.ledger.accepted][-1] == task_id
    midapi_sandbox.faults.on("submit", do=lose_answer())
    lost = midapi("generate", "a blue whale", "--key", "3").err
    again = only(midapi("journal", "list", "unknown").lines[1:]).split()[0]
    assert f"If it is there: midapi journal adopt {again} TASK_ID. " in lost
    task_id = midapi_sandbox.ledger.accepted[-1].task_id
    assert midapi("journal", "adopt", again, task_id).out.strip() == task_id
    bought = len(midapi_sandbox.ledger.accepted)
    assert midapi("generate", "a blue whale", "--key", "3", "--no-wait").out.strip() == task_id
    assert len(midapi_sandbox.ledger.accepted) == bought
    midapi_sandbox.faults.on("submit", do=lose_answer())
    midapi("generate", "a blue whale", "--key", "4")
    again = only(midapi("journal", "list", "unknown").lines[1:]).split()[0]
    assert midapi("journal", "dismiss", again).err == f"Intent {again} is dismissed.\n"


def test_backup_says_what_to_run(midapi: Midapi, unknown: str, url: str, elsewhere: Path) -> None:
    """The command that it prints works, with the password in its own variable."""
    ran = midapi("journal", "backup", "journal.dump", "--journal", f"{url}?schema=midapi")
    assert ran.code == 2
    command = ran.error.partition("as in: ")[2].partition(". Restore")[0]
    assert "would be paid again" in ran.error
    program, *arguments = shlex.split(command.replace("FILE", "journal.dump"))
    user = {"PGPASSWORD": PASSWORD, "PGUSER": ROLE}
    subprocess.run([programs() / program, *arguments], env=user, check=True, timeout=60)
    assert (elsewhere / "journal.dump").stat().st_size > 1000


def test_no_command_makes_a_journal(midapi: Midapi, url: str) -> None:
    """A database without one is the wrong one."""
    for command in ("list", "check", "stats", "prune", "resume"):
        ran = midapi("journal", command, "--journal", url)
        assert ran.code == 2
        assert ran.error.startswith(f"journal: {place_of(url)} contains no journal (schema midapi)")
    assert doctor(midapi, url)["journal"]["verdict"] == "warning"
    assert asyncio.run(_database_has(url, "midapi")) is False


async def _database_has(url: str, schema: str) -> bool:
    async with connected(url) as connection:
        found = await connection.fetchval("SELECT to_regnamespace($1) IS NOT NULL", schema)
        return bool(found)


def doctor(midapi: Midapi, url: str) -> dict[str, dict[str, str]]:
    """The findings, each by its name."""
    checks = midapi("doctor", "--json", "--journal", url).json["checks"]
    return {each["name"]: each for each in checks}


# ─── what can be wrong ───────────────────────────────────────────────────────────────────────────


def test_each_problem_is_said_in_plain_words(midapi: Midapi, url: str, postgres: Server) -> None:
    """By a command that submits, one that reads, and the doctor; the password is never shown."""
    right, rest = url.split("@")
    wrong = secrets.known("some-other-password")
    for bad, text in (
        (f"{right}@127.0.0.1:{free_port()}/db", "cannot be reached"),
        (f"postgresql://{ROLE}:{wrong}@{rest}", "check the user and the password in its URL"),
        (f"postgresql://nobody:{wrong}@{rest}", "check the user and the password in its URL"),
        (f"{url}x", "create that database, or correct its URL"),
        (f"{url}?schema=No-Name", "must be small letters, digits and _"),
        (f"postgresql://{ROLE}:{PASSWORD}@{rest}", "write special characters as %40 for @"),
        (f"{url}?sslmode=no", "sslmode"),
        (f"{url}?sslmode=require", "SSL"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MIDAPI_JOURNAL", bad)
            for command in ("generate", "a red fox", "--no-wait"), ("journal", "list"):
                ran = midapi(*command)
                assert ran.code in {1, 2}
                assert text in ran.error, command
        found = doctor(midapi, bad)["journal"]
        assert (found["verdict"], text in found["text"]) == ("failed", True), found


def test_doctor_describes_a_server(
    midapi: Midapi, url: str, postgres: Server, midapi_sandbox: SandboxThread
) -> None:
    """Release, durability, replication, keepalives; an empty journal, then one with an alarm."""
    found = doctor(midapi, url)
    assert found["journal"]["text"] == (
        f"{place_of(url)} contains no journal yet (schema midapi); the first use makes it"
    )
    assert found["PostgreSQL"]["text"].startswith(f"{place_of(url)} answers; release ")
    assert found["durability"]["verdict"] == "warning"  # the tests' own server has fsync = off
    assert "no standby is connected" in found["replication"]["text"]
    assert found["keepalives"]["verdict"] == "ok"
    midapi_sandbox.faults.on("submit", do=lose_answer())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIDAPI_JOURNAL", url)
        midapi("generate", "a red fox", "--key", "1")
        ran = midapi("doctor")
    assert f"✓ journal: {place_of(url)}, schema midapi can be used (version" in ran.out
    assert "! unknown submissions: 1 of which it cannot be known" in ran.out
    assert "midapi journal list unknown" in ran.out


USUAL = {
    "version": "15.20",
    "process": 7,
    "named_process": 7,
    "is_local": False,
    "keepalives": "5",
    "fsync": "on",
    "pages": "on",
    "vacuum": "on",
    "names": "",
    "standbys": 0,
    "confirming": 0,
}


@pytest.mark.parametrize(
    ("change", "finding", "text"),
    [
        ({"fsync": "off"}, "! durability", "a power failure can lose"),
        ({"pages": "off"}, "! durability", "a power failure can lose"),
        ({"vacuum": "off"}, "! vacuum", "grow without limit"),
        ({"is_local": True, "keepalives": "0"}, "✓ keepalives", "on this machine"),
        ({"keepalives": "0"}, "! keepalives", "hours to notice a lost connection"),
        ({"named_process": 8}, "! keepalives", "go through a pooler"),
        ({"standbys": 1}, "! replication", "a failover loses the last commits"),
        ({"names": "*"}, "! replication", "no synchronous standby is connected"),
        ({"names": "*", "standbys": 1}, "! replication", "no synchronous standby is connected"),
        ({"names": "*", "standbys": 1, "confirming": 1}, "✓ replication", "loses nothing"),
    ],
)
def test_what_the_doctor_says_about_a_server(
    change: dict[str, Any], finding: str, text: str
) -> None:
    """Each fact by itself; all others are as they should be."""
    marks = {"ok": "✓", "warning": "!"}
    found = {
        f"{marks[each.verdict]} {each.name}": each.text
        for each in judged({**USUAL, **change}, "the server")
    }
    assert text in found[finding]
    assert sum(name.startswith("!") for name in found) == finding.startswith("!")


def test_doctor_names_missing_rights(midapi: Midapi, url: str, postgres: Server) -> None:
    """To make the schema; to use that of another role."""
    name = url.rpartition("/")[2]
    theirs = postgres.url.replace("/postgres", f"/{name}")
    asyncio.run(_execute(theirs, f"ALTER DATABASE {name} OWNER TO CURRENT_USER"))
    found = doctor(midapi, url)["journal"]
    assert (found["verdict"], found["text"]) == (
        "failed",
        f"the role {ROLE} may not create the schema midapi, or tables in it",
    )
    assert "GRANT CREATE ON DATABASE" in found["hint"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIDAPI_JOURNAL", url)
        assert "GRANT CREATE ON DATABASE" in midapi("generate", "a red fox", "--no-wait").error
        patch.setenv("MIDAPI_JOURNAL", theirs)
        assert midapi("generate", "a red fox", "--no-wait").code == 0
    found = doctor(midapi, url)["journal"]
    assert (found["verdict"], found["text"]) == (
        "failed",
        f"the role {ROLE} may not read and write all tables of the schema midapi",
    )
    rights = "GRANT {} IN SCHEMA midapi TO pictures"
    asyncio.run(_execute(theirs, "GRANT USAGE ON SCHEMA midapi TO pictures"))
    asyncio.run(_execute(theirs, rights.format("ALL ON ALL TABLES")))
    asyncio.run(_execute(theirs, rights.format("ALL ON ALL SEQUENCES")))
    assert doctor(midapi, url)["journal"]["verdict"] == "ok"


def test_a_schema_or_a_password_elsewhere_is_enough(
    midapi: Midapi, url: str, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As docs/postgresql.md says: a role needs only a schema, and its URL no password."""
    name = url.rpartition("/")[2]
    theirs = postgres.url.replace("/postgres", f"/{name}")
    asyncio.run(_execute(theirs, f"ALTER DATABASE {name} OWNER TO CURRENT_USER"))
    asyncio.run(_execute(theirs, f"CREATE SCHEMA midapi AUTHORIZATION {ROLE}"))
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    monkeypatch.setenv("MIDAPI_JOURNAL", f"postgresql://{ROLE}@{url.rpartition('@')[2]}")
    assert "contains no journal yet" in midapi("doctor").out
    assert midapi("generate", "a red fox", "--no-wait").code == 0
    assert midapi("journal", "stats", "--json").json["open"] == 1


async def _execute(url: str, statement: str) -> None:
    async with connected(url) as connection:
        await connection.execute(statement)


def test_doctor_changes_no_tables(midapi: Midapi, unknown: str, url: str) -> None:
    """Those of an older release would be changed by opening the journal."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("midapi_async.journal.postgres.schema.VERSION", 99)
        found = doctor(midapi, url)["journal"]
    assert found["verdict"] == "warning"
    assert "have version 1; the first use by this release makes version 99" in found["text"]
    asyncio.run(_execute(url, "UPDATE midapi.meta SET version = 99"))
    found = doctor(midapi, url)["journal"]
    assert (found["verdict"], "update midapi_async" in found["text"]) == ("failed", True)


def test_doctor_finds_poolers(midapi: Midapi, postgres: Server) -> None:
    """One in transaction mode cannot be used; one in session mode hides cables that are cut."""
    schema = f"?schema={new_schema()}"
    with pgbouncer(postgres.port, "session") as url:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MIDAPI_JOURNAL", url + schema)
            midapi("generate", "a red fox", "--no-wait")
        found = doctor(midapi, url + schema)
        assert found["journal"]["verdict"] == "ok"
        assert "go through a pooler" in found["keepalives"]["text"]
    with pgbouncer(postgres.port, "transaction") as url:
        found = doctor(midapi, url + schema)
    assert found["journal"]["verdict"] == "failed"
    assert "a pooler with pool_mode = session" in found["journal"]["text"]


def test_doctor_tells_how_a_standby_follows(midapi: Midapi) -> None:
    """Asynchronous, synchronous, away; the standby itself is no place for a journal."""
    with (
        started(wal_level="replica", max_wal_senders="3") as primary,
        new_folder(in_memory()) as folder,
    ):
        copy = as_user(programs() / "pg_basebackup", "-d", primary.url, "-D", folder / "data")
        copy += ["-R", "--checkpoint=fast", "--no-sync"]
        subprocess.run(copy, check=True, capture_output=True, cwd="/", timeout=60)
        standby = Server(folder / "data", {"hot_standby": "on", "fsync": "off"})
        standby.start()
        try:
            found = doctor(midapi, primary.url)["replication"]
            assert (found["verdict"], "can be claimed, and paid, again" in found["text"]) == (
                "warning",
                True,
            )
            asyncio.run(_follow(primary, "'*'"))
            found = doctor(midapi, primary.url)["replication"]
            assert (found["verdict"], found["text"][:15]) == ("ok", "synchronous (*)")
            asyncio.run(_follow(primary, "'another'"))
            found = doctor(midapi, primary.url)["replication"]
            assert "no synchronous standby is connected" in found["text"]
            found = doctor(midapi, standby.url)["journal"]
            assert (found["verdict"], "read-only standby" in found["text"]) == ("failed", True)
        finally:
            standby.kill()


async def _follow(primary: Server, names: str) -> None:
    await primary.execute(f"ALTER SYSTEM SET synchronous_standby_names = {names}")
    await primary.execute("SELECT pg_reload_conf(), pg_sleep(0.2)")


async def test_a_running_application_takes_the_probe(
    url: str, postgres: Server, midapi_sandbox: SandboxThread
) -> None:
    """The doctor's note is in the database, so an application on any host can read it."""
    port = free_port()
    receiver = CallbackReceiver(None, port=port)
    async with MidAPIClient(receiver=receiver, journal=url):
        settings = _checks.callback_settings(f"http://127.0.0.1:{port}", "127.0.0.1", None, None)
        assert isinstance(settings, _checks.CallbackSettings)
        found = await _checks.callbacks(settings, URL(midapi_sandbox.url), url)
    assert found[-1].text.startswith("it has arrived at your application, and was answered in")


def test_the_driver_is_missing(midapi: Midapi, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra `postgres` each command says what to install."""
    for name in [name for name in sys.modules if "postgres" in name or name.endswith("_database")]:
        if name.startswith("midapi_async."):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("midapi_async.cli._database", raising=False)
    monkeypatch.delattr("midapi_async.journal.postgres", raising=False)
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    monkeypatch.setenv("MIDAPI_JOURNAL", "postgresql://db.example/pictures")
    for command in ("generate", "a red fox"), ("journal", "list"), ("journal", "backup", "file"):
        assert "pip install 'midapi-async[postgres]'" in midapi(*command).error
    found = doctor(midapi, "postgresql://db.example/pictures")["journal"]
    assert (found["verdict"], found["text"][:24]) == ("failed", "PostgreSQL needs asyncpg")


def test_the_queries_for_operators(unknown: str, url: str, postgres: Server) -> None:
    """Those of docs/postgresql.md run, each as it is, and find the unknown submission."""
    page = (REPOSITORY / "docs" / "postgresql.md").read_text("utf-8")
    blocks = re.findall(r"^```sql\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    queries = [each for block in blocks for each in block.split(";\n") if "SELECT" in each]
    theirs = postgres.url.replace("/postgres", f"/{url.rpartition('/')[2]}")

    async def ask(query: str) -> list[Any]:
        async with connected(theirs) as connection:
            return list(await connection.fetch(query))

    found = [asyncio.run(ask(query)) for query in queries]
    assert len(found) == 7
    assert found[0][0]["intent_id"] == unknown
    assert {"intents", "slots"} <= {row["relname"] for row in found[5]}
