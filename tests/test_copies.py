"""Every public class is copied and pickled whole, or refuses and says what to do (L15)."""

import copy
import pickle
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import pytest
from yarl import URL

import midapi_async
from midapi_async import (
    BatchItem,
    BatchProgress,
    BatchRequest,
    CallbackReceiver,
    ClientStats,
    Expected,
    ExtendVideo,
    ImageToImage,
    ImageToVideo,
    Intent,
    MidAPIClient,
    MidAPIError,
    OmniReference,
    PollPolicy,
    Progress,
    RateLimit,
    ResultFile,
    RetryPolicy,
    State,
    StyleReference,
    TaskDetails,
    TaskFailed,
    TaskStatus,
    TextToImage,
    Timeouts,
    UploadedURL,
    Upscale,
    Vary,
    callbacks,
    events,
)
from midapi_async._runtime.secret import Secret, hidden
from midapi_async._wire.tokens import new_token
from midapi_async.callbacks import Callback
from midapi_async.config import settings
from midapi_async.journal.protocol import Busy, Claimed, JournalStats, Standing
from midapi_async.journal.sqlite import SQLiteJournal
from tests.support.scripted import ScriptedServer
from tests.support.secrets import API_KEY, WEBHOOK_KEY, assert_none_in, found_in
from tests.test_errors import EXAMPLES
from tests.world import TASK, client_of

DETAILS = TaskDetails(
    task_id=TASK,
    status=TaskStatus.SUCCEEDED,
    urls=("https://x.example/0.jpeg",),
    params={"prompt": "a red fox", "nested": {"list": [1, 2]}},
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
    raw={"taskId": TASK, "extra": {"a": [None]}},
)
INTENT = Intent(
    intent_id="1" * 32,
    scope="https://api.midapi.ai default",
    request=TextToImage("a red fox", extra={"new": {"field": [1]}}),
    fingerprint="f",
    token_hash="h",
    created_at=1.5,
    metadata={"user": "7"},
    state=State.SUCCEEDED,
    details=DETAILS,
)
ERROR = TaskFailed(TASK, DETAILS)
AT: dict[str, Any] = {
    "at": datetime(2026, 1, 1, tzinfo=UTC),
    "key": "fox",
    "intent_id": "i",
    "task_id": TASK,
}
URLS = ("https://x.example/0.jpeg",)
JOURNAL_STATS: dict[str, Any] = dict.fromkeys(attrs.fields_dict(JournalStats), 1)
BATCH_PROGRESS: dict[str, Any] = dict.fromkeys(attrs.fields_dict(BatchProgress), 1)

VALUES: list[object] = [
    *(error for error, _ in EXAMPLES),
    *TaskStatus,
    *State,
    DETAILS,
    INTENT,
    Expected(60.0, 90.0),
    PollPolicy(floor=2),
    RateLimit(5, per=2),
    RetryPolicy(give_up_after=1),
    Timeouts(wait=None),
    Progress(name="fox.png", index=0, done=1, total=None),
    BatchRequest("a red fox", key="fox", metadata={"user": "7"}),
    BatchItem(index=0, request=TextToImage("a red fox"), details=DETAILS, paths=(Path("a.png"),)),
    BatchProgress(**BATCH_PROGRESS),
    TextToImage("a red fox", version="7"),
    ImageToImage("a red fox", URLS),
    ImageToImage("a red fox", (Path("fox.png"), UploadedURL(URLS[0], "0" * 64))),
    UploadedURL(URLS[0], "0" * 64),
    StyleReference("a red fox", URLS),
    OmniReference("a red fox", URLS),
    ImageToVideo("a red fox", URLS),
    ResultFile(TASK, 1),
    Upscale(TASK, 1),
    Vary(TASK, 1),
    ExtendVideo(TASK, 0),
    ClientStats(**dict.fromkeys(attrs.fields_dict(ClientStats), 1)),
    Callback(TASK, is_acknowledgement=True),
    Claimed("slot", 3),
    Standing(INTENT, same=True),
    Busy(1.0),
    JournalStats(**JOURNAL_STATS),
    events.Queued(**AT, place=3),
    events.Sent(**AT),
    events.Retrying(**AT, reason="refused", delay=1.0, left=2.0),
    events.Accepted(**AT),
    events.Looked(**AT, status=TaskStatus.GENERATING),
    events.CalledBack(**AT),
    events.Finished(**AT, details=DETAILS),
    events.Failed(**AT, error=ERROR),
]
# They have no instances of their own: protocols, types, and functions.
WITHOUT = {
    "Body", "Event", "Headers", "ImageFields", "Inbox", "Journal", "Request",
    "__version__", "read_body", "read_callback", "request_from_json", "request_to_json",
    "sign_callback", "without_tokens",
}  # fmt: skip
REFUSED = {"Batch", "CallbackReceiver", "Intents", "MemoryJournal", "MidAPIClient", "TaskHandle"}


def test_every_public_class_is_in_the_table() -> None:
    """A new public class must be added to the table."""
    names = {*midapi_async.__all__, *events.__all__, *callbacks.__all__}
    values = {type(value).__name__ for value in VALUES}
    assert names - values == WITHOUT | REFUSED


def arrivals(value: object) -> Iterator[object]:
    """Its copies, and what comes out of its pickles; no pickle contains a secret."""
    yield copy.copy(value)
    yield copy.deepcopy(value)
    for number in range(2, pickle.HIGHEST_PROTOCOL + 1):
        stored = pickle.dumps(value, number)
        assert not found_in(stored.decode("latin-1"))
        yield pickle.loads(stored)  # noqa: S301 - ours


@pytest.mark.fault("L15")
@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_copies_and_pickles_are_equal(value: object) -> None:
    """Errors are compared by their text and fields."""
    for arrived in arrivals(value):
        assert type(arrived) is type(value)
        assert repr(arrived) == repr(value)
        assert str(arrived) == str(value)
        if not isinstance(value, MidAPIError | events.Failed):
            assert arrived == value


@pytest.fixture
async def client() -> AsyncIterator[MidAPIClient]:
    """An open client with a receiver and all its secrets."""
    receiver = CallbackReceiver(None, port=0, webhook_key=WEBHOOK_KEY)
    async with ScriptedServer() as server, client_of(server, receiver=receiver) as client:
        yield client


def refusals(value: object) -> Iterator[str]:
    """What is said when it is copied or pickled."""
    ways: list[Callable[[Any], object]]
    ways = [copy.copy, copy.deepcopy, *(_dumps(number) for number in range(6))]
    for travel in ways:
        with pytest.raises(TypeError) as caught:
            travel(value)
        assert_none_in(caught.value)
        yield str(caught.value)


def _dumps(number: int) -> Callable[[object], object]:
    return lambda value: pickle.dumps(value, number)


@pytest.mark.fault("L15")
async def test_what_has_connections_or_secrets_says_what_to_pass_instead(
    client: MidAPIClient, tmp_path: Path
) -> None:
    """A `TypeError`; nothing secret is in its text."""
    journal = SQLiteJournal(tmp_path)
    handle = client.task(TASK)
    wanted: dict[object, str] = {
        client: "Make one in each process",
        MidAPIClient(API_KEY): "Make one in each process",
        client._receiver: "CallbackReceiver.from_env()",
        handle: "use client.task(task_id)",
        client.intents: "at the client itself",
        client.generate_many(["a red fox"]): "with the same batch=",
        client._journal: "path of a folder",
        journal: "path of a folder",
    }
    assert {type(each).__name__ for each in wanted} == REFUSED | {"SQLiteJournal"}
    for value, advice in wanted.items():
        for said in refusals(value):
            assert "cannot be copied or pickled" in said
            assert advice in said


@pytest.mark.fault("L15")
def test_settings_can_be_copied_and_keep_their_secret() -> None:
    """In the same process only: a pickle would contain the API key."""
    known = settings(API_KEY, "https://api.midapi.ai")
    for arrived in (copy.copy(known), copy.deepcopy(known)):
        assert arrived == known
        assert arrived.api_key == API_KEY
        assert arrived.base_url == URL("https://api.midapi.ai/")
    for number in range(6):
        with pytest.raises(TypeError, match="a secret cannot be pickled") as caught:
            pickle.dumps(known, number)
        assert_none_in(caught.value)


# ─── secrets ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.fault("L15")
def test_a_secret_is_a_string_that_does_not_show_itself() -> None:
    """In containers and when it is cut; `str` and f-strings show it, and it is equal to itself."""
    token = new_token()
    for value in (
        token,
        {"a": [token]},
        (token[:40], token[5]),
        attrs.make_class("C", ["x"])(token),
    ):
        assert not found_in(repr(value))
        assert "***" in repr(value)
    plain = str(token)
    assert type(plain) is str
    assert f"{token}" == plain == token
    assert hash(token) == hash(plain)
    assert copy.deepcopy({"a": token}) == {"a": plain}


def test_secret_arguments_are_hidden() -> None:
    """Texts; other values stay as they are."""
    assert isinstance(hidden("x"), Secret)
    assert hidden(None) is None
    assert hidden(warnings) is warnings
