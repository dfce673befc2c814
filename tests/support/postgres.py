"""A real PostgreSQL server for tests: installed if it is missing, started here, gone afterwards."""

import asyncio
import fcntl
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import asyncpg

from midapi_async.journal.postgres.session import Session
from midapi_async.testing import VirtualLoop
from tests.support.waiting import free_port

PACKAGES = ("postgresql", "pgbouncer")
SUPERUSER = "tests"


def in_memory() -> str | None:
    """A folder that needs no disk, where the system has one."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - a folder of our own in it


@cache
def programs() -> Path:
    """The folder with PostgreSQL's programs. In CI, or for root, they are installed if necessary.

    Debian's own package would also start a server: the tests need none, and it stays without use.
    """
    for _ in range(2):
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        found += [Path(each) for each in [shutil.which("initdb")] if each]
        if found and shutil.which("pgbouncer", path="/usr/sbin:/usr/bin"):
            return found[-1].resolve().parent
        install(*PACKAGES)
    raise AssertionError("PostgreSQL and pgbouncer are missing, and could not be installed")


def install(*packages: str) -> None:
    """Install packages with apt-get; one process at a time."""
    assert os.environ.get("CI") or os.geteuid() == 0, f"install {' and '.join(packages)} first"
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    lock = open(Path(tempfile.gettempdir()) / "midapi-tests-install", "w")  # noqa: SIM115, PTH123 - held to the end
    fcntl.flock(lock, fcntl.LOCK_EX)
    wait = ["-o", "DPkg::Lock::Timeout=300", "-qq"]
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        subprocess.run([*sudo, "apt-get", *wait, *command], env=quiet, check=True, timeout=600)


def as_user(*command: str | Path) -> list[str]:
    """A command that runs as a user whom PostgreSQL accepts, and not longer than these tests."""
    user = ["--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    return ["setpriv", "--pdeathsig=KILL", *user, *map(str, command)]


class Server:
    """A server on a port of its own.

    Args:
        folder: where its data is, or will be.
        settings: of postgresql.conf.
        address: where it listens.
        enter: what goes before a command that runs at its host.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict[str, str],
        *,
        address: str = "127.0.0.1",
        enter: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.address = address
        self.enter = enter
        self.port = free_port()
        self.settings = settings
        self.process: subprocess.Popen[bytes] | None = None

    def create(self) -> None:
        """Make an empty cluster."""
        command = ["--auth=trust", f"--username={SUPERUSER}", "--no-sync", "--encoding=UTF8"]
        initdb = as_user(programs() / "initdb", "-D", self.folder, "--locale=C", *command)
        subprocess.run(initdb, check=True, capture_output=True, cwd="/", timeout=60)

    def start(self) -> None:
        """Start it and wait until it answers."""
        settings = {
            "listen_addresses": self.address,
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "60",
            "shared_buffers": "32MB",
            "logging_collector": "off",
            "dynamic_shared_memory_type": "mmap",  # in its folder: a killed server leaves it behind
            **self.settings,
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = [*self.enter, *as_user(programs() / "postgres", "-D", self.folder, *options)]
        with (self.folder.parent / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/")
        self.wait()

    def wait(self) -> None:
        """Wait until it answers."""
        ready = [str(programs() / "pg_isready"), "-q", "-h", self.address, "-p", str(self.port)]
        until = time.monotonic() + 30
        while subprocess.run(ready, check=False, timeout=10).returncode:
            log = (self.folder.parent / "log").read_text("utf-8", "replace")
            assert time.monotonic() < until, log
            assert self.process is not None
            assert self.process.poll() is None, log
            time.sleep(0.05)

    def kill(self) -> None:
        """End it as a power failure would."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)
        self.process = None
        # Its children see that within moments, and one that lives would refuse the next start.
        until = time.monotonic() + 10
        while self._is_left() and time.monotonic() < until:
            time.sleep(0.02)

    def _is_left(self) -> bool:
        found = subprocess.run(
            ["pgrep", "-f", f"port={self.port}"], check=False, capture_output=True, timeout=10
        )
        return found.returncode == 0

    @property
    def url(self) -> str:
        """Its address."""
        return f"postgresql://{SUPERUSER}@{self.address}:{self.port}/postgres"

    async def execute(self, statement: str, *values: object) -> list[Any]:
        """Run a statement and return its rows."""
        connection = await asyncpg.connect(self.url)
        try:
            return list(await connection.fetch(statement, *values))
        finally:
            await connection.close()


@contextmanager
def server(*, is_durable: bool = False, **settings: str) -> Iterator[Server]:
    """A new server.

    Args:
        is_durable: whether it writes to a disk, synced.
        **settings: of postgresql.conf.
    """
    if not is_durable:
        settings |= {"fsync": "off", "full_page_writes": "off"}
    with new_folder(None if is_durable else in_memory()) as folder:
        one = Server(folder / "data", settings)
        one.create()
        one.start()
        try:
            yield one
        finally:
            one.kill()


@contextmanager
def new_folder(parent: str | None = None) -> Iterator[Path]:
    """A folder that belongs to the user of the servers."""
    with tempfile.TemporaryDirectory(dir=parent, prefix="midapi-postgres-") as name:
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(name, user.pw_uid, user.pw_gid)
        yield Path(name)


def new_schema() -> str:
    """The name of a schema that does not exist."""
    return f"test_{secrets.token_hex(8)}"


def show_to_virtual_clocks(monkeypatch: Any) -> None:
    """Let the clock of a `VirtualLoop` stand while PostgreSQL, another process, has work to do."""

    def standing(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(*values: Any, **options: Any) -> Any:
            loop, job = asyncio.get_running_loop(), object()
            jobs = loop._clock.jobs if isinstance(loop, VirtualLoop) else set[object]()
            jobs.add(job)
            try:
                return await method(*values, **options)
            finally:
                jobs.discard(job)

        return call

    for name in ("do", "disown", "aclose", "_announce_all"):
        monkeypatch.setattr(Session, name, standing(getattr(Session, name)))
