"""No message of the command line names a Python call: it says what to type."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import midapi_async
from midapi_async import (
    AuthenticationError,
    BadRequestError,
    ClientClosed,
    GenerationFailedError,
    InvalidRequestError,
    MidAPIError,
    ResultMissing,
    SubmissionUnknown,
    UnprocessableError,
    WaitTimeout,
)
from midapi_async.cli._errors import command_error, in_commands
from midapi_async.errors import about
from midapi_async.sandbox import SandboxThread, answer_code
from tests.cli.conftest import Midapi, only
from tests.test_errors import EXAMPLES

PACKAGE = Path(midapi_async.__file__).parent
# A method, a call, a keyword argument.
PYTHON = re.compile(
    r"client\.\w|\w\(\)|\bPath\(|\bawait\b|\bits handle\b|intents\.|\b[a-z_]+=(?:[,\s'A-Z0-9{]|$)"
    r"|\b(?:webhook_key|public_url) |\b[A-Z][A-Za-z]+\([a-z_]+="
)
APART = {"cli", "integrations", "sandbox", "testing.py"}
SQL = {"table.py", "schema.py", "store.py", "session.py", "contract.py"}
# Only a program can cause these: it copies an object, or passes a wrong one.
OF_PROGRAMS = (
    "cannot be copied or pickled",
    "make a request of it with request_from_json()",
    "must be what a handle or client.details() returns",
    "; await the handle first",
    "is a Path: await client.prepare(request) uploads it",  # never shown: --dry-run prints others
    "is a str that is not an http or https URL; for a file write Path(",
    "must be a list, got one Path",
    "your own uploader=",  # has no option
    "must be open in binary mode: its read() returns",
    "Content-Disposition: form-data; name=",  # headers of an upload
    "multipart/form-data; boundary=",
    "is not open: use it in 'async with client:'",
    "is not an argument here",
    "gives each row a key",  # midapi batch has given each row one
    "can be used only once: call generate_many() anew",
    "sep=",  # how a CSV file may begin
    "pass kind=Upscale or kind=Vary",  # the command line looks for this before
    " key={}",  # of a repr
)
# Built from several strings, and covered by the test of the errors.
OF_UNKNOWN = ("Do one of: ", "await client.intents.settle(intent_id)")


def texts() -> Iterator[str]:
    """Each string of the SDK that is not a docstring, with {} for what is filled in."""
    for file in sorted(PACKAGE.rglob("*.py")):
        if file.relative_to(PACKAGE).parts[0] in APART or file.name in SQL:
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        parts: set[int] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts |= {id(each) for each in node.values}
                yield "".join(
                    str(each.value) if isinstance(each, ast.Constant) else "{}"
                    for each in node.values
                )
            elif isinstance(node, ast.Expr):
                parts.add(id(node.value))
            elif isinstance(node, ast.Constant) and id(node) not in parts:
                yield str(node.value)


def test_each_text_of_the_sdk_is_translated() -> None:
    """Errors, warnings and lines of the log; a new one with a Python name needs a command."""
    left = []
    for text in texts():
        if any(known in text for known in (*OF_PROGRAMS, *OF_UNKNOWN)):
            continue
        filled = text.replace("({})", "('X')")
        if PYTHON.search(in_commands(f"Task X {filled.replace('ait again', 'wait again', 1)}")):
            left.append(text)
    assert left == []


LOOKS = [
    about(kind(code, "no"), task_id="t1")
    for kind, code in (
        (BadRequestError, 400),
        (UnprocessableError, 422),
        (GenerationFailedError, 501),
        (AuthenticationError, 401),
    )
]
OTHERS = [
    ResultMissing("t1"),
    WaitTimeout("t1"),
    WaitTimeout("t1", goes_on=True, problem="it is slow."),
    WaitTimeout(None, "i1", 17),
    WaitTimeout(),
    SubmissionUnknown("i1", "k", can_settle=True, candidates=("t1", "t2")),
    ClientClosed("t1"),
    about(ClientClosed(), intent_id="i1"),
    ClientClosed(),
]


@pytest.mark.parametrize("error", [*LOOKS, *OTHERS, *(error for error, _ in EXAMPLES)], ids=repr)
def test_no_error_names_a_python_call(error: MidAPIError) -> None:
    """Its facts stay in the text; what names a call becomes a command."""
    message = command_error(error).message
    assert not PYTHON.search(message), message
    assert "client." not in message
    assert "()" not in message
    for name in (error.task_id, error.intent_id):
        assert name is None or name in message
    if PYTHON.search(str(error)):
        assert "midapi " in message


def test_the_json_of_an_error_names_no_python_call() -> None:
    """Its problems are translated as its message is."""
    error = command_error(InvalidRequestError({"name": "is there: pass overwrite=True"}))
    assert error.message == "name: is there: give --overwrite"
    assert error.facts["problems"] == {"name": "is there: give --overwrite"}


def test_with_a_journal_an_unknown_submission_is_decided_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The commands to type have its id; without a journal, no later command would know it."""
    error = SubmissionUnknown("i1", "k")
    monkeypatch.delenv("MIDAPI_JOURNAL", raising=False)
    assert "midapi task TASK_ID --wait --download" in command_error(error).message
    assert "adopt" not in command_error(error).message
    monkeypatch.setenv("MIDAPI_JOURNAL", "journal")
    message = command_error(error).message
    assert "If it is there: midapi journal adopt i1 TASK_ID. If not: midapi journal r" in message
    assert "to give it up, midapi journal dismiss i1" in message


@pytest.mark.real_time
@pytest.mark.midapi_sandbox(time_scale=240)
def test_a_refused_look_says_what_to_type(
    midapi: Midapi, midapi_sandbox: SandboxThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so does the log, about keys in memory."""
    made = midapi("generate", "a fox", "--no-wait", "--key", "mine")
    assert "a folder in MIDAPI_JOURNAL keeps them" in made.err
    task_id = only(made.lines)
    midapi_sandbox.faults.on("look", do=answer_code(400))
    ran = midapi("task", task_id)
    assert f"run midapi task {task_id} --wait to find out" in ran.error
    monkeypatch.setenv("MIDAPI_BASE_URL", "http://fox.example.org")
    assert "or set MIDAPI_ALLOW_HTTP=1" in midapi("credits").error
