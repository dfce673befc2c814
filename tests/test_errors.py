"""The tree of errors: its shape, its texts, and that nothing is lost when one travels."""

import copy
import inspect
import pickle

import attrs
import pytest

from midapi_async import errors
from midapi_async.errors import (
    APIError,
    AuthenticationError,
    BadRequestError,
    ClientClosed,
    DownloadError,
    FeatureDisabledError,
    GenerationFailedError,
    InsufficientCreditsError,
    InvalidRequestError,
    JournalError,
    KeyConflict,
    MaintenanceError,
    MidAPIError,
    NotFoundError,
    PromptRefusedError,
    PromptRejected,
    ProtocolError,
    RateLimitError,
    ReceiverError,
    ResultExpired,
    ResultMissing,
    ServerError,
    SpendingCapError,
    SubmissionUnknown,
    TaskError,
    TaskExpired,
    TaskFailed,
    TaskNotFound,
    TransportError,
    UnexpectedContent,
    UnprocessableError,
    WaitTimeout,
    api_error,
    shown,
)
from midapi_async.tasks import TaskDetails, TaskStatus

# design.md, "Errors, one tree", literally: each class and its bases.
TREE: dict[type[BaseException], tuple[type[BaseException], ...]] = {
    MidAPIError: (Exception,),
    InvalidRequestError: (MidAPIError, ValueError),
    KeyConflict: (InvalidRequestError,),
    APIError: (MidAPIError,),
    BadRequestError: (APIError,),
    PromptRefusedError: (BadRequestError,),
    AuthenticationError: (APIError,),
    InsufficientCreditsError: (APIError,),
    NotFoundError: (APIError,),
    UnprocessableError: (APIError,),
    RateLimitError: (APIError,),
    SpendingCapError: (APIError,),
    MaintenanceError: (APIError,),
    ServerError: (APIError,),
    GenerationFailedError: (APIError,),
    FeatureDisabledError: (APIError,),
    TransportError: (MidAPIError,),
    ProtocolError: (MidAPIError,),
    SubmissionUnknown: (MidAPIError,),
    TaskError: (MidAPIError,),
    TaskFailed: (TaskError,),
    PromptRejected: (TaskFailed,),
    TaskNotFound: (TaskError,),
    TaskExpired: (TaskError,),
    ResultMissing: (TaskError,),
    WaitTimeout: (MidAPIError, TimeoutError),
    ReceiverError: (MidAPIError,),
    JournalError: (MidAPIError,),
    DownloadError: (MidAPIError,),
    ResultExpired: (DownloadError,),
    UnexpectedContent: (DownloadError,),
    ClientClosed: (MidAPIError,),
}
CODES = {
    400: BadRequestError,
    401: AuthenticationError,
    402: InsufficientCreditsError,
    404: NotFoundError,
    422: UnprocessableError,
    429: RateLimitError,
    433: SpendingCapError,
    455: MaintenanceError,
    500: ServerError,
    501: GenerationFailedError,
    502: ServerError,
    503: ServerError,
    504: ServerError,
    505: FeatureDisabledError,
    599: ServerError,
    # and no class of its own for what is in no table
    0: APIError,
    -1: APIError,
    200: APIError,
    403: APIError,
    408: APIError,
    499: APIError,
    600: APIError,
    1001: APIError,
}
FAILED = TaskDetails(
    task_id="t1",
    status=TaskStatus.FAILED,
    params={"prompt": "a fox"},
    error_code=500,
    error_message="it broke",
)
# One of each, with every attribute set to something of its own, and what its text must tell.
EXAMPLES: list[tuple[MidAPIError, str]] = [
    (MidAPIError("x"), "x"),
    (InvalidRequestError({"prompt": "must not be empty", "ow": "is 0"}), "prompt: must not be"),
    (KeyConflict("order-17"), "needs a key of its own"),
    *(
        (api_error(code, "said so", 418, own_envelope=False, retry_after=7.5), "said so")
        for code in CODES
    ),
    (PromptRefusedError(422, "nsfw", 200), "Change the prompt or the picture"),
    (TransportError("refused", sent=True), "Check the network"),
    (ProtocolError("data.taskId", "is missing"), "Check the base URL"),
    (SubmissionUnknown("i1", "order-17", True, "cut"), "await client.intents.settle(intent_id)"),
    (SubmissionUnknown("i1", "order-17"), "In a shell: midapi journal list unknown."),
    (TaskError("t1", FAILED), "t1"),
    (TaskFailed("t1", FAILED), "submit it again under a new key"),
    (PromptRejected("t1", FAILED), "Change the prompt"),
    (TaskNotFound("t1"), "Check the task id"),
    (ResultMissing("t1", FAILED), "client.details(task_id)"),
    (TaskExpired("t1"), "Use another key"),
    (WaitTimeout("t1"), "client.task('t1').wait()"),
    (WaitTimeout(None, "i1"), "client.intents.settle('i1')"),
    (WaitTimeout(), "Nothing was bought"),
    (ReceiverError("port 1 is taken"), "port 1 is taken"),
    (JournalError("the disk is full"), "the disk is full"),
    (DownloadError("https://x/1.png", "HTTP 500"), "try again"),
    (ResultExpired("https://x/1.png", "HTTP 410", 410), "ask MidAPI's support"),
    (UnexpectedContent("https://x/1.png", "HTML"), "was not kept"),
    (ClientClosed("t1"), "client.task('t1').wait()"),
    (ClientClosed(), "Open it again"),
]
NAMES = [f"{type(error).__name__}-{number}" for number, (error, _) in enumerate(EXAMPLES)]


def test_the_tree_is_that_of_the_design() -> None:
    """Each class hangs where design.md hangs it, and there is no other."""
    found = {
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if kind.__module__ == errors.__name__
    }
    assert found == set(TREE)
    assert {kind: kind.__bases__ for kind in TREE} == TREE


def test_each_class_has_an_example_below() -> None:
    """A class that is added later is tested like the others."""
    assert {type(error) for error, _ in EXAMPLES} == set(TREE)


def test_the_drawing_names_each_class() -> None:
    """The tree in the module's docstring is whole."""
    assert not [kind for kind in TREE if kind.__name__ not in (errors.__doc__ or "")]


@pytest.mark.fault("S8")
@pytest.mark.parametrize(("code", "kind"), CODES.items())
def test_each_code_has_its_class(code: int, kind: type[APIError]) -> None:
    """The class says the code; its facts are kept; what is in no table is an `APIError`."""
    error = api_error(code, "said", 200, own_envelope=False, retry_after=3.0)
    assert kind is type(error)
    assert (code, "said", 200, False) == (
        error.code,
        error.message,
        error.http_status,
        error.own_envelope,
    )
    assert isinstance(error, RateLimitError) is (code == 429)
    if isinstance(error, RateLimitError):
        assert error.retry_after == 3.0


@pytest.mark.parametrize(("error", "_"), EXAMPLES, ids=NAMES)
def test_an_error_travels_whole(error: MidAPIError, _: str) -> None:
    """Copied or pickled, an error keeps its class, its args, each attribute and its text."""
    pickled = (pickle.loads(pickle.dumps(error, number)) for number in range(6))  # noqa: S301 - ours
    for arrived in (copy.copy(error), copy.deepcopy(error), *pickled):
        assert type(error) is type(arrived)
        assert error.args == arrived.args
        assert vars(error) == vars(arrived)
        assert str(error) == str(arrived)


@pytest.mark.parametrize(("error", "tells"), EXAMPLES, ids=NAMES)
def test_a_text_is_one_line_that_tells_what_to_do(error: MidAPIError, tells: str) -> None:
    """What failed and what to do next, on one line that ends like a sentence does."""
    assert tells in str(error)
    assert str(error).isprintable()
    assert ".." not in str(error)
    assert "None" not in str(error)


def test_the_builtin_bases_work() -> None:
    """Code that knows only the builtins catches what it expects."""
    with pytest.raises(ValueError):
        raise InvalidRequestError({"prompt": "is wrong"})
    with pytest.raises(TimeoutError):
        raise WaitTimeout("t1")


def test_a_text_shows_http_status_only_where_it_adds_something() -> None:
    """Most of MidAPI's errors come with HTTP 200, or with the code as the status."""
    assert "HTTP" not in str(api_error(402, "", 200))
    assert "HTTP" not in str(api_error(402, "", 402))
    assert "(HTTP 500)" in str(api_error(402, "", 500))


@pytest.mark.fault("S5")
def test_a_rate_limit_says_when() -> None:
    """The seconds stand in the text where MidAPI said any."""
    assert "It asks to wait 30 s." in str(RateLimitError(retry_after=30.0))
    assert "asks for" not in str(RateLimitError())


def test_an_unknown_submission_names_what_can_be_done() -> None:
    """Settle is offered only where a callback can come; the other three always."""
    alone, with_receiver = (
        SubmissionUnknown("i1", can_settle=False),
        SubmissionUnknown("i1", can_settle=True),
    )
    assert "settle" not in str(alone)
    assert "settle" in str(with_receiver)
    named = SubmissionUnknown("i1", candidates=("t1", "t2"))
    assert "task t1 and task t2" in str(named)
    for error in (alone, with_receiver, named):
        assert all(way in str(error) for way in ("i1", ".adopt(", ".resubmit(", ".dismiss("))


@pytest.mark.parametrize(
    ("reason", "why"),
    [
        ("the server closed the connection", ": the server closed the connection"),
        ("its answer was cut short. ", ": its answer was cut short"),
        ("", ""),
    ],
)
def test_an_unknown_submission_begins_with_what_happened(reason: str, why: str) -> None:
    """The reason comes first, where a list or a log cuts the text; the names come once."""
    text = str(SubmissionUnknown("i1", "order-17", reason=reason))
    begin, _, rest = text.partition(" Do one of: ")
    assert begin == (
        f"It is not known whether MidAPI accepted this{why}. It may have been paid, and was not "
        "sent again (intent i1, key 'order-17')."
    )
    assert rest.endswith("In a shell: midapi journal list unknown.")
    assert [text.count("i1"), text.count("order-17")] == [1, 1]


def test_a_repr_names_the_fields() -> None:
    """In a log or a debugger, a bare False or an empty text says nothing."""
    assert repr(SubmissionUnknown("aa33", "o4")) == (
        "SubmissionUnknown(intent_id='aa33', key='o4', can_settle=False, reason='', candidates=())"
    )
    assert repr(PromptRejected("t1")) == "PromptRejected(task_id='t1', details=None)"
    for error, _ in EXAMPLES:
        kind = type(error)
        names = [f"{each.name}=" for each in attrs.fields(kind)] if attrs.has(kind) else []
        assert [name for name in names if name not in repr(error)] == []


@pytest.mark.parametrize(
    ("message", "transient"),
    [
        ("No response from MidJourney Official Website after multiple attempts.", True),
        ("NO RESPONSE FROM MIDJOURNEY", True),
        ("nsfw", False),
        (None, False),
    ],
)
def test_a_failure_knows_whether_it_is_passing(message: str | None, transient: bool) -> None:
    """Only the one text on record is; the advice follows it."""
    error = TaskFailed("t1", TaskDetails(task_id="t1", error_message=message))
    assert transient is error.transient
    assert transient is ("likely to be temporary" in str(error))
    assert not TaskFailed("t1").transient


def test_an_unprintable_field_name_does_not_break_the_line() -> None:
    """The names of a JSON body are anybody's."""
    assert str(InvalidRequestError({"a\n\x1b[2Jb": "is no field"})).isprintable()


class Unshowable:
    """Somebody's class with a bug."""

    def __repr__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a\nb", r"'a\nb'"),
        ("x" * 100, "'" + "x" * 59),
        (10**5000, "a int that cannot be shown"),
        (Unshowable(), "a Unshowable that cannot be shown"),
        (None, "None"),
        ("\ud800\u202e", r"'\ud800\u202e'"),
    ],
    ids=["newline", "long", "huge", "bug", "none", "marks"],
)
def test_any_wrong_value_can_be_shown(value: object, expected: str) -> None:
    """Short, on one line, and never an error of its own."""
    assert shown(value) == expected
