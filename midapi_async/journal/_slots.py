"""The gate's slots in a journal's folder: all processes of the machine share one account's limit.

    gates/<hash>/slots      the table, changed in place under a lock; the name is a hash of the
                            account and the limit
    gates/<hash>/<owner>    a locked file for each process that uses it, as in `owners`

Shared and not divided: a burst in one of four workers gets the whole limit, and one that idles
wastes nothing. Where several want a slot, it goes to whoever has used the fewest just now, and
among those to who waits longest; so a batch of one process starves nobody in another.

Nothing here was paid for. So nothing is synced, a submit pays for no second commit, and what cannot
be read is made anew, with all slots taken for just used. Moments are those of the loop's clock,
which all processes of a machine share; after a reboot it begins anew, and what lies further ahead
than anything could is stale.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import math
import os
import struct
import time
import weakref
import zlib
from bisect import bisect
from typing import TYPE_CHECKING

from .._submission.gate import Pace
from ..errors import JournalError
from . import _forks
from ._locks import PATIENCE, Lock, Owners, try_lock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ..config import RateLimit

_log = logging.getLogger("midapi_async")

FOLDER, FILE = "gates", "slots"
LOOK_EVERY = 0.25  # seconds, at most, between two looks of a process that waits
_ATTEMPT = 0.001  # seconds that the event loop may be held for the lock, which is held for less
_PAUSE = 0.0001  # seconds between two attempts
_GIVEN_UP = 1.0  # seconds; attempts further apart are not one wait
_LONGEST_PAUSE = 120.0  # seconds that a 429 can pause submissions
_SLACK = 5.0  # seconds by which the clocks of two event loops may differ
_MAGIC = b"mjslots1"
_HEAD = struct.Struct("<8sIIIIdddd")  # magic, checksum, three lengths, the pace
_FLYING = struct.Struct("<16sQ")
_WANT = struct.Struct("<16sQdd")
_OWNER = 16  # bytes
_PAGE = 4096  # bytes; a table of some hundred slots fits


class Table(Pace):
    """What the file says: which slots are in flight or cooling, whose they are, and who waits.

    Args:
        limit: submissions in a window of loop seconds; None for no limit of ours.
        me: the owner that looks at it.
        is_alive: whether an owner is.
    """

    def __init__(
        self, limit: RateLimit | None, me: bytes, is_alive: Callable[[bytes], bool]
    ) -> None:
        super().__init__(limit)
        self.look_every = look_every(limit)
        self.me = me
        self._is_alive = is_alive
        self._flying: dict[bytes, int] = {}
        self._until: list[float] = []  # when each cooling slot comes back, in order
        self._users: list[bytes] = []  # who used it
        self._wants: dict[bytes, tuple[int, float, float]] = {}  # how many, since, looked last
        self._is_lost = False

    # ─── as bytes ────────────────────────────────────────────────────────────────────────────────

    def encode(self) -> bytes:
        """All of it."""
        count = len(self._until)
        body = b"".join(
            [
                *(_FLYING.pack(*pair) for pair in self._flying.items()),
                struct.pack(f"<{count}d", *self._until),
                *self._users,
                *(_WANT.pack(owner, *want) for owner, want in self._wants.items()),
            ]
        )
        lengths = len(self._flying), count, len(self._wants)
        pace = self.allowed, self.paused_until, self.halves_from, self.grows_at
        head = _HEAD.pack(_MAGIC, 0, *lengths, *pace)
        return _HEAD.pack(_MAGIC, zlib.crc32(body, zlib.crc32(head)), *lengths, *pace) + body

    def decode(self, data: bytes) -> None:
        """Take over what was written.

        Raises:
            ValueError: it was not written by us, or not whole.
        """
        if len(data) < _HEAD.size:
            raise ValueError("it is cut short")
        magic, checksum, flying, cooling, wants, *pace = _HEAD.unpack_from(data)
        size = length(data)
        head = _HEAD.pack(magic, 0, flying, cooling, wants, *pace)
        body = memoryview(data)[_HEAD.size : size]
        if magic != _MAGIC or len(data) < size or checksum != zlib.crc32(body, zlib.crc32(head)):
            raise ValueError("it is damaged")
        self.allowed, self.paused_until, self.halves_from, self.grows_at = pace
        at = flying * _FLYING.size
        self._flying = dict(_FLYING.iter_unpack(body[:at]))
        self._until = list(struct.unpack_from(f"<{cooling}d", body, at))
        at += cooling * 8
        self._users = [bytes(body[at + n * _OWNER :][:_OWNER]) for n in range(cooling)]
        at += cooling * _OWNER
        self._wants = {
            owner: (many, *moments) for owner, many, *moments in _WANT.iter_unpack(body[at:])
        }

    def lose(self) -> None:
        """Nobody knows what was in flight: all slots count as just used."""
        self._is_lost = True

    # ─── the slots ───────────────────────────────────────────────────────────────────────────────

    def catch_up(self, now: float) -> None:
        """See `Slots`."""
        if self._is_lost and self.count != math.inf:
            self._until = [now + self.per] * int(self.count)
            self._users = [bytes(_OWNER)] * int(self.count)
        self._is_lost = False
        self._forget_stale(now)
        over = bisect(self._until, now)
        del self._until[:over], self._users[:over]
        if self.allowed < self.count:
            self.recover(now)

    def _forget_stale(self, now: float) -> None:
        """What lies further ahead than it can is of a clock that was before a reboot."""
        ahead = now + _SLACK
        possible = bisect(self._until, ahead + self.per)
        del self._until[possible:], self._users[possible:]
        if self.paused_until > ahead + _LONGEST_PAUSE:
            self.paused_until = now
        if self.halves_from > ahead + self.per:
            self.halves_from = now
        if self.grows_at > ahead + _LONGEST_PAUSE + self.per:
            self.grows_at = now + self.per
        for owner, (_, _, seen) in list(self._wants.items()):
            if not now - 3 * self.look_every <= seen <= ahead:  # gave up, stopped, or died
                del self._wants[owner]

    def take(self, now: float, since: float) -> bool:
        """See `Slots`."""
        if now < self.paused_until:
            return False
        if self.count == math.inf:
            return True
        free = self.free()
        if free <= 0 or (self._wants and self._kept_for_others(since) >= free):
            return False
        self._flying[self.me] = self._flying.get(self.me, 0) + 1
        return True

    def _kept_for_others(self, since: float) -> int:
        """How many slots others take before one of ours that waits since a moment.

        Each of them as many as it wants, until it has used as many as we have; and one more if it
        waits longer.
        """
        mine, kept = self._used(self.me), 0
        for owner, (waiting, theirs, _) in self._wants.items():
            if owner != self.me:
                share = mine + (theirs < since) - self._used(owner)
                kept += min(max(share, 0), waiting)
        return kept

    def _used(self, owner: bytes) -> int:
        return self._flying.get(owner, 0) + self._users.count(owner)

    def give_back(self, now: float) -> None:
        """See `Slots`."""
        self.hand_back()
        self._cool(self.me, now + self.per)

    def hand_back(self) -> None:
        """See `Slots`. Of a table that was lost meanwhile nothing is left to take away."""
        left = self._flying.pop(self.me, 0) - 1
        if left > 0:
            self._flying[self.me] = left

    def _cool(self, owner: bytes, until: float) -> None:
        at = bisect(self._until, until)
        self._until.insert(at, until)
        self._users.insert(at, owner)

    def look_again_at(self, now: float, waiting: int, since: float) -> float:
        """See `Slots`; whoever waits says so, for others to see."""
        self._wants.pop(self.me, None)
        if waiting and self.count != math.inf:
            self._wants[self.me] = waiting, since, now
            self.bury(now)
        return self.next_change(now, self._until[0] if self._until else math.inf)

    @property
    def is_in_use(self) -> bool:
        """Whether slots of ours are in flight."""
        return self.me in self._flying

    def bury(self, now: float) -> None:
        """What dead owners had in flight ended when they died, which is now at the latest."""
        dead = [each for each in self._flying if each != self.me and not self._is_alive(each)]
        for owner in dead:
            for _ in range(self._flying.pop(owner)):
                self._cool(owner, now + self.per)

    def free(self) -> float:
        """See `Slots`."""
        return self.allowed - sum(self._flying.values()) - len(self._until)


def look_every(limit: RateLimit | None) -> float:
    """Seconds between two looks of a process that waits: others may have given back a slot."""
    return min(LOOK_EVERY, limit.per / 4) if limit else LOOK_EVERY


def length(data: bytes) -> int:
    """How many bytes the table has that begins so."""
    flying, cooling, wants = _HEAD.unpack_from(data)[2:5]
    bodies = flying * _FLYING.size + cooling * (8 + _OWNER) + wants * _WANT.size
    return int(_HEAD.size + bodies)


class SlotFile:
    """The place of an account's slots in a journal's folder; see `Place`.

    It opens with its first use and can be used again after ``close``.

    Args:
        folder: where the journal is, which is there already.
        name: the account's and the limit's.
        limit: submissions in a window of loop seconds; None for no limit of ours.
    """

    def __init__(self, folder: Path, name: str, limit: RateLimit | None) -> None:
        self._limit = limit
        self._files = _Files(folder / FOLDER / name)
        self._table: Table | None = None
        self._told = b""  # what the file says, as far as the table says the same
        self._was_there = False
        self.where = str(folder / FOLDER / name)
        self.look_every = look_every(limit)
        weakref.finalize(self, self._files.close)

    def __enter__(self) -> Table:
        try:
            self._files.acquire()
            try:
                self._table = table = self._load()
            except BaseException:
                self._files.release()
                raise
        except BlockingIOError:
            raise
        except OSError as error:
            raise self._unusable(error) from error
        return table

    def __exit__(self, kind: object, *_: object) -> None:
        told, self._told = self._told, b""
        try:
            if kind is None and self._table is not None:
                data = self._table.encode()
                if data != told:
                    self._files.write(data)
                self._told, self._was_there = data, True
        except OSError as error:
            raise self._unusable(error) from error
        finally:
            self._files.release()

    def last_seen(self) -> Table | None:
        """See `Place`."""
        return self._table

    def close(self) -> None:
        """See `Place`."""
        if self._table is None or not self._table.is_in_use:
            self._files.close()

    def _load(self) -> Table:
        data, me = self._files.read(), self._files.me()
        if self._table and self._told and data.startswith(self._told) and self._table.me == me:
            return self._table  # nobody else was here
        self._told = b""
        table = Table(self._limit, me, self._files.is_alive)
        if not data and not self._was_there:
            return table  # a new file
        self._was_there = True
        try:
            table.decode(data)
        except (ValueError, struct.error) as error:
            _log.warning(
                "the account's gate %s is made anew, with all slots taken for just used: %s",
                self.where,
                error,
            )
            table.lose()
        return table

    def _unusable(self, error: OSError) -> JournalError:
        return JournalError(
            f"the account's gate {self.where} cannot be used: {error.strerror or error}; see that "
            "the journal's folder is there, that this user may write to it, and that the disk has "
            "space"
        )


class _Files:
    """What a `SlotFile` has open.

    Args:
        folder: of one account and limit; made if it is missing, but not the journal's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock: _Lock | None = None
        self._owners = Owners(folder)

    def acquire(self) -> None:
        """Have the table alone.

        Raises:
            BlockingIOError: somebody else has it just now.
            JournalError: somebody else has had it for too long.
        """
        lock = self._opened()
        lock.acquire()
        if os.fstat(lock.descriptor).st_nlink == 0:  # removed: others would never see it
            self.close()
            self._opened().acquire()

    def release(self) -> None:
        """Let others have it."""
        if self._lock is not None:
            self._lock.release()

    def read(self) -> bytes:
        """What stands in the file; behind the table there may be more, which means nothing."""
        descriptor = self._opened().descriptor
        data = os.pread(descriptor, _PAGE, 0)
        if len(data) == _PAGE and (size := length(data)) > _PAGE:
            data = os.pread(descriptor, min(size, os.fstat(descriptor).st_size), 0)
        return data

    def write(self, data: bytes) -> None:
        """Put the table into the file; one that is not whole is found out by the next reader."""
        if os.pwrite(self._opened().descriptor, data, 0) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._folder / FILE))

    def me(self) -> bytes:
        """Our name as an owner; the first call also removes the files of the dead."""
        if self._owners.descriptor is None:
            with _forks.none():
                self._owners.mine()
            self._owners.sweep()
        return bytes.fromhex(self._owners.mine())

    def is_alive(self, owner: bytes) -> bool:
        """Whether an owner's lock is held."""
        return self._owners.is_alive(owner.hex())

    def _opened(self) -> _Lock:
        if self._lock is None:
            _forks.watch()
            _forks.opened.add(self)
            with _forks.none():
                for folder in (self._folder.parent, self._folder):
                    folder.mkdir(mode=0o700, exist_ok=True)
                self._lock = _Lock(self._folder / FILE)
        return self._lock

    def close(self) -> None:
        """Let go of everything; what is in flight still is a dead owner's from now on."""
        self._owners.leave()
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.close()
        _forks.opened.discard(self)

    def abandon(self) -> tuple[int, int] | None:
        """See `Forkable`. The child may begin anew, as an owner of its own."""
        if self._owners.descriptor is not None:
            os.close(self._owners.descriptor)  # without unlocking: that would be the parent's, too
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.close()
        self._owners = Owners(self._folder)
        return None


class _Lock(Lock):
    """The lock on the table, tried for a moment only: an event loop must not wait for it."""

    _held_since = -math.inf
    _tried_at = -math.inf

    def acquire(self) -> None:
        """Have it, or raise BlockingIOError; JournalError if it was held for too long."""
        deadline = time.monotonic() + _ATTEMPT
        while not try_lock(self.descriptor):
            if time.monotonic() >= deadline:
                self._complain()
                raise BlockingIOError
            time.sleep(_PAUSE)
        self._tried_at = -math.inf

    def release(self) -> None:
        """Let go of it, but not of the file."""
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)

    def _complain(self) -> None:
        now = time.monotonic()
        if now - self._tried_at > _GIVEN_UP:
            self._held_since = now
        self._tried_at = now
        if now - self._held_since > PATIENCE:
            raise JournalError(
                f"the account's gate {self.path} has been held for more than {PATIENCE:g} s by "
                f"{self._holder()}: see what it is doing, end it if it hangs, then try again"
            )
