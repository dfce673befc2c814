"""What each public call raises: which names its error carries, and that its text is true there.

A text is true in its situation: once a task was bought, none may say that nothing was; while that
is not known, none may promise either; and what was refused must not sound bought. One row of the
table is one call and one failure; the last test finds classes that are raised without a row.
"""

import ast
import copy
import json
import pickle
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal, TypeAlias

import attrs
import pytest

import midapi_async
from midapi_async import (
    APIError,
    AuthenticationError,
    CallbackReceiver,
    ClientClosed,
    DownloadError,
    InvalidRequestError,
    JournalError,
    KeyConflict,
    MemoryJournal,
    MidAPIClient,
    MidAPIError,
    PromptRefusedError,
    PromptRejected,
    ProtocolError,
    RateLimitError,
    ReceiverError,
    ResultExpired,
    ResultMissing,
    SubmissionUnknown,
    TaskDetails,
    TaskExpired,
    TaskFailed,
    TaskNotFound,
    TaskStatus,
    TransportError,
    UnexpectedContent,
    WaitTimeout,
    errors,
)
from midapi_async._wire.tokens import new_token
from midapi_async.errors import api_error
from tests.support.scripted import (
    Play,
    Received,
    ScriptedServer,
    Step,
    close,
    garbage,
    hang,
    lose_answer,
    reply,
    reset,
)
from tests.support.secrets import assert_none_in
from tests.world import TASK, accepted, client_of, looked, ok, refused

KEY = "order-17"
PICTURE = b"\x89PNG\r\n\x1a\n"
HTML = "<html><title>Sign in</title></html>"
CODES = (400, 401, 402, 404, 422, 429, 433, 455, 500, 501, 505, 999)
POLICY = "Your prompt was flagged by Website as violating content policies"

# Sentences that are false in a situation, whatever the error.
Situation: TypeAlias = Literal["free", "unknown", "bought"]
FALSE: dict[Situation, str] = {
    "free": r"goes on|It was bought|may (be|have been) (accepted|paid)|not affected",
    "unknown": r"[Nn]othing was (bought|sent)|before this call bought|goes on: wait again",
    "bought": r"[Nn]othing was (bought|sent)|before this call bought|[Ss]ubmit (it )?again[ ,.]|"
    r"repeat the call|Top up|Correct the|may have been paid",
}


class BreakableJournal(MemoryJournal):
    """A journal that fails from some moment on."""

    is_broken = False

    async def step(self, work: Callable[[Any], Any], **options: Any) -> Any:
        """See `MemoryJournal.step`."""
        if self.is_broken:
            raise JournalError("the disk is full")
        return await super().step(work, **options)


class World:
    """A server whose answers are exchanged while a case runs, and its client."""

    client: MidAPIClient

    def __init__(self, folder: Path) -> None:
        self.server = ScriptedServer(then=self.answer)
        self.journal = BreakableJournal()
        self.folder = folder
        self.submit: Play = accepted()
        self.look: Play = looked()
        self.other: Play = ok(100)

    def answer(self, request: Received) -> Step:
        """The answer for a request, by its kind."""
        play = self.other
        if "/mj/generate" in request.path:
            play = self.submit
        elif request.path.endswith("record-info"):
            play = self.look
        return play(request) if callable(play) else play

    async def buy(self) -> midapi_async.TaskHandle:
        """Buy a picture under the key."""
        return await self.client.generate("a red fox", key=KEY)

    async def lose(self) -> str:
        """Lose the answer to a submission under the key; return the intent's id."""
        self.submit = lose_answer()
        with pytest.raises(SubmissionUnknown) as caught:
            await self.buy()
        self.submit = accepted()
        return caught.value.intent_id

    def details(self, name: str = "fox.png") -> TaskDetails:
        """Details with one file, at the server."""
        url = f"{self.server.url}/{name}"
        return TaskDetails(task_id=TASK, status=TaskStatus.SUCCEEDED, urls=(url,))


Act: TypeAlias = Callable[[World], Awaitable[object]]


@attrs.frozen
class Case:
    """A call that fails: how, with which class, which names, and in which situation."""

    act: Act
    kind: type[MidAPIError]
    names: str = ""  # of "key", "intent_id" and "task_id", with blanks between them
    situation: Situation = "free"


CASES: dict[str, Case] = {}


def case(
    kind: type[MidAPIError], names: str = "", situation: Situation = "free"
) -> Callable[[Act], Act]:
    """Add the decorated function, whose last call fails, to the table."""

    def add(act: Act) -> Act:
        CASES[act.__name__] = Case(act, kind, names, situation)
        return act

    return add


def refuse_with(name: str, answer: Play, kind: type[MidAPIError]) -> None:
    """Add the failure of a submission that is refused, and of the calls that concern no task."""

    async def submit(world: World) -> None:
        world.submit = answer
        await world.buy()

    async def credit(world: World) -> None:
        world.other = answer
        await world.client.credits()

    async def link(world: World) -> None:
        world.other = answer
        await world.client.download_url("https://files.example/fox.png")

    CASES[f"generate_{name}"] = Case(submit, kind, "key intent_id")
    CASES[f"credits_{name}"] = Case(credit, kind)
    CASES[f"download_url_{name}"] = Case(link, kind)


def fail_looks_with(name: str, answer: Play, kind: type[MidAPIError]) -> None:
    """Add the failure of each call that is one look."""

    async def by_id(world: World) -> None:
        world.look = answer
        await world.client.details(TASK)

    async def by_handle(world: World) -> None:
        handle = await world.buy()
        world.look = answer
        await handle.details()

    async def adopt(world: World) -> None:
        intent_id = await world.lose()
        world.look = answer
        await world.client.intents.adopt(intent_id, TASK)

    CASES[f"details_{name}"] = Case(by_id, kind, "task_id", "bought")
    CASES[f"handle_details_{name}"] = Case(by_handle, kind, "key intent_id task_id", "bought")
    CASES[f"adopt_{name}"] = Case(adopt, kind, "key intent_id task_id", "bought")


for code in CODES:
    of_code = type(api_error(code, "", 200))
    if code in (500, 999):
        pass  # for a submission it proves nothing; see `unknown_answer`
    elif code not in (429, 455):
        refuse_with(f"code_{code}", refused(code, "no"), of_code)
    if code not in (404, 422):
        fail_looks_with(f"code_{code}", refused(code, POLICY), of_code)
refuse_with("policy", refused(400, POLICY), PromptRefusedError)
del CASES["credits_policy"], CASES["download_url_policy"]  # these have no prompt
refuse_with("challenge", reply(403, body=HTML, headers={"cf-mitigated": "challenge"}), APIError)
fail_looks_with("challenge", reply(403, body=HTML, headers={"cf-mitigated": "x"}), APIError)
fail_looks_with("redirect", reply(302, headers={"Location": "/login"}), ProtocolError)
fail_looks_with("page", reply(200, body=HTML), ProtocolError)
fail_looks_with("reset", reset(), TransportError)
fail_looks_with("closed", close(), TransportError)


# ─── buying ──────────────────────────────────────────────────────────────────────────────────────


@case(RateLimitError, "key intent_id")
async def rate_limited(world: World) -> None:
    world.submit = refused(429, "too fast", Retry_After="500")
    await world.buy()


@case(SubmissionUnknown, "key intent_id", "unknown")
async def unknown_answer(world: World) -> None:
    world.submit = refused(500)
    await world.buy()


@case(SubmissionUnknown, "key intent_id", "unknown")
async def unknown_key_again(world: World) -> None:
    await world.lose()
    await world.buy()


@case(SubmissionUnknown, "key intent_id", "unknown")
async def find_an_unknown_key(world: World) -> None:
    await world.lose()
    await world.client.find(KEY)


@case(WaitTimeout, "key")
async def timeout_before_the_post(world: World) -> None:
    world.submit = refused(429, "too fast", Retry_After="30")
    await world.client.generate("a red fox", key=KEY, timeout=1)


@case(WaitTimeout, "key intent_id", "unknown")
async def timeout_during_the_post(world: World) -> None:
    world.submit = hang()
    await world.client.generate("a red fox", key=KEY, timeout=1)


@case(WaitTimeout, "key intent_id task_id", "bought")
async def timeout_after_the_post(world: World) -> None:
    world.look = looked(flag=0)
    await world.client.generate_and_wait("a red fox", key=KEY, wait_timeout=1)


@case(KeyConflict, "key intent_id task_id")
async def key_of_another_request(world: World) -> None:
    await world.buy()
    await world.client.generate("a blue whale", key=KEY)


@case(InvalidRequestError, "key intent_id")
async def key_that_was_dismissed(world: World) -> None:
    await world.client.intents.dismiss(await world.lose())
    await world.buy()


@case(TaskExpired, "key intent_id task_id", "bought")
async def key_of_an_expired_task(world: World) -> None:
    await (await world.buy()).wait()
    await world.client.aclose()  # its result is in the journal then
    await world.journal.prune(before=1e12)
    await world.client.open()
    await world.buy()


@case(InvalidRequestError, "key")
async def wrong_prompt(world: World) -> None:
    await world.client.generate("", key=KEY)


@case(InvalidRequestError, "key")
async def wrong_timeout(world: World) -> None:
    await world.client.generate_and_wait("a red fox", key=KEY, wait_timeout="1")  # type: ignore[call-overload]  # tested


@case(InvalidRequestError, "key")
async def wrong_metadata(world: World) -> None:
    await world.client.generate("a red fox", key=KEY, metadata={"n": 1})  # type: ignore[dict-item]  # tested


@case(InvalidRequestError)
async def wrong_key(world: World) -> None:
    await world.client.generate("a red fox", key="a\nb")


@case(TransportError, "key")
async def outage(world: World) -> None:
    world.submit = world.other = reply(403, body=HTML)
    with pytest.raises(SubmissionUnknown):
        await world.client.generate("a blue whale")
    await world.buy()


@case(JournalError, "key")
async def journal_before_the_post(world: World) -> None:
    world.journal.is_broken = True
    await world.buy()


# ─── waiting ─────────────────────────────────────────────────────────────────────────────────────


def wait_that_ends_with(
    name: str, answer: Play, kind: type[MidAPIError], situation: Situation = "bought"
) -> None:
    """Add the failure of a wait, by the handle of a submission and by a task's id alone."""

    async def by_handle(world: World) -> None:
        world.look = answer
        await (await world.buy()).wait(None)

    async def by_id(world: World) -> None:
        world.look = answer
        await world.client.task(TASK).wait(None)

    CASES[f"wait_{name}"] = Case(by_handle, kind, "key intent_id task_id", situation)
    CASES[f"wait_for_id_{name}"] = Case(by_id, kind, "task_id", situation)


wait_that_ends_with("failed", looked(flag=2, errorMessage="it broke"), TaskFailed)
wait_that_ends_with("rejected", looked(flag=3, errorMessage="nsfw"), PromptRejected)
wait_that_ends_with("not_found", refused(422, "recordInfo is null"), TaskNotFound)
wait_that_ends_with("no_files", looked(resultInfoJson=None), ResultMissing)
wait_that_ends_with("refused_key", refused(401, "no access"), AuthenticationError)
fail_looks_with("not_found", refused(422, "recordInfo is null"), TaskNotFound)
del CASES["adopt_not_found"]  # `adopt` says why the task cannot be adopted


@case(SubmissionUnknown, "key intent_id", "unknown")
async def record_of_another_submission(world: World) -> None:
    foreign = {"callBackUrl": f"http://127.0.0.1:1/{new_token()}"}
    world.look = looked(paramJson=json.dumps(foreign))
    receiver = CallbackReceiver(None, port=0)
    async with client_of(world.server, receiver=receiver) as client:
        await (await client.generate("a red fox", key=KEY)).wait(None)


@case(WaitTimeout, "task_id", "bought")
async def timeout_of_a_wait(world: World) -> None:
    world.look = looked(flag=0)
    await world.client.task(TASK).wait(1)


@case(InvalidRequestError, "key intent_id task_id", "bought")
async def wrong_timeout_of_a_wait(world: World) -> None:
    await (await world.buy()).wait("1")  # type: ignore[arg-type]  # tested


@case(JournalError, "key intent_id task_id", "bought")
async def journal_during_ack(world: World) -> None:
    handle = await world.buy()
    world.journal.is_broken = True
    await handle.ack()


# ─── unknown submissions ─────────────────────────────────────────────────────────────────────────


@case(SubmissionUnknown, "key intent_id", "unknown")
async def settle_without_callback(world: World) -> None:
    await world.client.intents.settle(await world.lose(), 1)


@case(InvalidRequestError, "key intent_id")
async def settle_a_dismissed_one(world: World) -> None:
    intent_id = await world.lose()
    await world.client.intents.dismiss(intent_id)
    await world.client.intents.settle(intent_id, 1)


@case(InvalidRequestError, "")
async def settle_what_is_not_there(world: World) -> None:
    await world.client.intents.settle("0" * 32)


@case(InvalidRequestError, "key intent_id task_id", "unknown")
async def adopt_what_is_not_known(world: World) -> None:
    world.look = refused(422, "recordInfo is null")
    await world.client.intents.adopt(await world.lose(), TASK)


@case(InvalidRequestError, "key intent_id task_id", "unknown")
async def adopt_what_another_has(world: World) -> None:
    await world.client.generate("a blue whale")
    await world.client.intents.adopt(await world.lose(), TASK)


@case(InvalidRequestError, "key intent_id task_id", "bought")
async def dismiss_what_was_bought(world: World) -> None:
    await world.client.intents.dismiss((await world.buy()).intent_id or "")


@case(InvalidRequestError, "key intent_id task_id", "bought")
async def resubmit_what_was_bought(world: World) -> None:
    await world.client.intents.resubmit((await world.buy()).intent_id or "")


@case(midapi_async.InsufficientCreditsError, "key intent_id")
async def resubmit_that_is_refused(world: World) -> None:
    intent_id = await world.lose()
    world.submit = refused(402)
    await world.client.intents.resubmit(intent_id)


@case(JournalError, "intent_id", "unknown")
async def journal_during_adopt(world: World) -> None:
    intent_id = await world.lose()
    world.journal.is_broken = True
    await world.client.intents.adopt(intent_id, TASK)


@case(TaskNotFound, "key intent_id task_id", "bought")
async def journal_after_a_task_was_not_found(world: World) -> None:
    world.look = ok(None)
    handle = await world.buy()
    world.journal.is_broken = True
    await handle


# ─── closed clients ──────────────────────────────────────────────────────────────────────────────


@case(ClientClosed, "key")
async def generate_when_closed(world: World) -> None:
    await world.client.aclose()
    await world.buy()


@case(ClientClosed, "key")
async def generate_when_stopped(world: World) -> None:
    world.client.stop_waiting()
    await world.buy()


@case(ClientClosed, "key")
async def find_when_closed(world: World) -> None:
    await world.client.aclose()
    await world.client.find(KEY)


@case(ClientClosed, "task_id", "bought")
async def details_when_closed(world: World) -> None:
    await world.client.aclose()
    await world.client.details(TASK)


@case(ClientClosed, "key intent_id task_id", "bought")
async def wait_when_closed(world: World) -> None:
    handle = await world.buy()
    await world.client.aclose()
    await handle


@case(ClientClosed, "key intent_id task_id", "bought")
async def wait_when_stopped(world: World) -> None:
    handle = await world.buy()
    world.client.stop_waiting()
    await handle


@case(ClientClosed, "intent_id", "unknown")
async def settle_when_closed(world: World) -> None:
    intent_id = await world.lose()
    intents = world.client.intents
    await world.client.aclose()
    await intents.settle(intent_id)


@case(ClientClosed)
async def credits_when_closed(world: World) -> None:
    await world.client.aclose()
    await world.client.credits()


@case(ClientClosed, "task_id", "bought")
async def download_when_closed(world: World) -> None:
    await world.client.aclose()
    await world.client.download(world.details(), world.folder)


# ─── files, receivers, arguments ─────────────────────────────────────────────────────────────────


@case(DownloadError, "task_id", "bought")
async def download_fails(world: World) -> None:
    world.other = reply(500)
    await world.client.download(world.details(), world.folder)


@case(DownloadError, "task_id", "bought")
async def download_breaks_off(world: World) -> None:
    world.other = reset()
    await world.client.download(world.details(), world.folder)


@case(ResultExpired, "task_id", "bought")
async def download_of_a_file_that_is_gone(world: World) -> None:
    world.other = reply(410)
    await world.client.download(world.details(), world.folder)


@case(UnexpectedContent, "task_id", "bought")
async def download_of_a_page(world: World) -> None:
    world.other = reply(200, body=HTML)
    await world.client.download(world.details(), world.folder)


@case(InvalidRequestError, "task_id", "bought")
async def download_without_files(world: World) -> None:
    await world.client.download(TaskDetails(task_id=TASK), world.folder)


@case(ReceiverError)
async def receiver_at_a_port_in_use(world: World) -> None:
    receiver = CallbackReceiver(None, port=world.server.port)
    async with client_of(world.server, receiver=receiver):
        pass


@case(ProtocolError)
async def credits_that_are_no_number(world: World) -> None:
    world.other = ok("many")
    await world.client.credits()


@case(TransportError)
async def credits_without_an_answer(world: World) -> None:
    world.other = garbage()
    await world.client.credits()


# ─── the tests ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", CASES)
async def test_an_error_has_its_ids_and_a_correct_text(name: str, tmp_path: Path) -> None:
    """One correct line without secrets that names what it is about; also after pickling."""
    expected, world = CASES[name], World(tmp_path)
    async with world.server, client_of(world.server, journal=world.journal) as world.client:
        with pytest.raises(MidAPIError) as caught:
            await expected.act(world)
        world.journal.is_broken = False
    error, text = caught.value, str(caught.value)
    assert type(error) is expected.kind, text
    assert_none_in(error, *error.args)
    known = {each: getattr(error, each) for each in ("key", "intent_id", "task_id")}
    assert {each for each, value in known.items() if value is not None} == set(
        expected.names.split()
    ), text
    assert all(value is None or value in text for value in known.values()), text
    assert known["key"] in (None, KEY)
    # Its sentences.
    if not isinstance(error, TaskFailed):  # after which a new try is what is left
        assert not re.search(FALSE[expected.situation], text), text
    if "API key" in text:
        assert expected.kind is AuthenticationError, text
    assert text.isprintable()
    assert not re.search(r"\.\.|\?\.|: \.| \(\)|\bNone\b(?!; got)|  ", text), text
    # Copies and pickles keep it whole.
    for arrived in (copy.copy(error), pickle.loads(pickle.dumps(error))):  # noqa: S301 - ours
        assert (type(arrived), str(arrived)) == (type(error), text)
        assert {each: getattr(arrived, each) for each in known} == known


def test_each_class_that_is_raised_has_a_case() -> None:
    """A class that is raised somewhere new needs a row above that shows its text."""
    package = Path(midapi_async.__file__).parent
    raised = set()
    for path in package.rglob("*.py"):
        if path.name == "errors.py" or path.is_relative_to(package / "sandbox"):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            name = node.func if isinstance(node, ast.Call) else getattr(node, "exc", None)
            if isinstance(name, ast.Name):
                raised.add(name.id)
    classes = {
        name
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, MidAPIError)
    }
    by_code = {type(api_error(code, "", 200)).__name__ for code in CODES}
    covered = {each.kind.__name__ for each in CASES.values()}
    assert (raised & classes) | by_code <= covered
