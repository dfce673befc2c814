"""The sandbox's evidence: what it accepted, what it was asked, what it called back."""

from collections import Counter
from collections.abc import Callable, Mapping
from threading import Lock
from typing import final

from attrs import evolve, frozen


@frozen
class Accepted:
    """One accepted submission: it was charged, whether or not its answer arrived."""

    task_id: str
    """The id of its task."""
    path: str
    """The path of the POST."""
    body: Mapping[str, object]
    """The JSON body as it came, including unknown fields."""
    callback_url: str | None
    """Its callBackUrl, if it had one."""
    price: float
    """The credits that were taken."""
    at: float
    """Seconds of the sandbox since its start."""
    account: str
    """A label of the API key: the same for the same key, and not the key."""


@frozen
class Asked:
    """One request and its answer."""

    method: str
    """The HTTP method."""
    path: str
    """The path, without the query."""
    operation: str
    """submit, look, credit, download_url, upload, file, or other."""
    task_id: str | None
    """The task it named in its query or its path, if any."""
    at: float
    """Seconds of the sandbox since its start."""
    with_key: bool
    """Whether it carried an Authorization header; a request for a file should not."""
    status: int | None = None
    """The HTTP status of the answer; None while there is none, and for one that was lost."""


@frozen
class CalledBack:
    """One POST to a callback URL."""

    task_id: str
    """The task that it is about."""
    url: str
    """The URL to which it was sent."""
    kind: str
    """acknowledgement or final."""
    attempt: int
    """1 for the first, up to 4."""
    at: float
    """Seconds of the sandbox since its start."""
    status: int | None
    """The HTTP status of the answer; None if there was no answer."""
    error: str | None = None
    """The name of the exception if there was no answer."""


class Ledger:
    """Immutable entries in the order in which they were made; may be read from any thread.

    What was accepted and called back is kept for the sandbox's whole life, since it is what
    a test asserts on; of all other requests the last ``REQUESTS_KEPT`` are kept, and exact
    counts of every one.
    """

    REQUESTS_KEPT = 100_000

    def __init__(self) -> None:
        """Open an empty ledger."""
        self._lock = Lock()
        self._accepted: list[Accepted] = []
        self._callbacks: list[CalledBack] = []
        self._requests: dict[int, Asked] = {}
        self._counts: Counter[str] = Counter()
        self._looks: Counter[str] = Counter()
        self._known: set[str] = set()
        self._next = 0

    @property
    def accepted(self) -> tuple[Accepted, ...]:
        """Every accepted submit, oldest first."""
        with self._lock:
            return tuple(self._accepted)

    @property
    def requests(self) -> tuple[Asked, ...]:
        """The last requests, oldest first; one under way has the status None."""
        with self._lock:
            return tuple(self._requests.values())

    @property
    def callbacks(self) -> tuple[CalledBack, ...]:
        """Every callback that was sent and what came of it, oldest first."""
        with self._lock:
            return tuple(self._callbacks)

    def count(self, operation: str) -> int:
        """Give how many requests of an operation came ("submit", "look", …), answered or not."""
        with self._lock:
            return self._counts[operation]

    def looks(self, task_id: str) -> int:
        """Give how many looks at a task came."""
        with self._lock:
            if task_id in self._known:
                return self._looks[task_id]
            asked = self._requests.values()
            return sum(a.operation == "look" and a.task_id == task_id for a in asked)

    def find(self, task_id: str) -> Accepted:
        """Give the accepted submit that made a task; KeyError when there is none."""
        with self._lock:
            for entry in self._accepted:
                if entry.task_id == task_id:
                    return entry
        raise KeyError(task_id)


@final
class Book(Ledger):
    """The ledger with its pen: only the server writes."""

    def __init__(self, note: Callable[[Accepted | CalledBack], None]) -> None:
        """Open an empty ledger; ``note`` is told of each submit and callback as well."""
        super().__init__()
        self._note = note

    def accept(self, entry: Accepted) -> None:
        """Write down an accepted submit."""
        with self._lock:
            self._accepted.append(entry)
            self._known.add(entry.task_id)
        self._note(entry)

    def ask(self, entry: Asked) -> int:
        """Write down a request that has just come; the number is for `answer`."""
        with self._lock:
            number = self._next = self._next + 1
            self._requests[number] = entry
            self._counts[entry.operation] += 1
            if entry.operation == "look" and entry.task_id in self._known:
                self._looks[entry.task_id] += 1
            if len(self._requests) > self.REQUESTS_KEPT:
                del self._requests[next(iter(self._requests))]
            return number

    def answer(self, number: int, status: int) -> None:
        """Write down how a request was answered."""
        with self._lock:
            if number in self._requests:
                self._requests[number] = evolve(self._requests[number], status=status)

    def call_back(self, entry: CalledBack) -> None:
        """Write down a callback that was tried."""
        with self._lock:
            self._callbacks.append(entry)
        self._note(entry)
