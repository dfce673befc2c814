"""``--base-url`` and ``--api-key-file``, of each command that connects."""

from pathlib import Path

import pytest

from midapi_async.sandbox import SandboxThread, lose_answer
from tests.cli.conftest import Midapi, only
from tests.support import secrets

pytestmark = [pytest.mark.real_time, pytest.mark.midapi_sandbox(time_scale=240, api_key="file")]


@pytest.fixture
def options(midapi_sandbox: SandboxThread, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """What leads to the sandbox, while the environment leads elsewhere with another key."""
    for name in ("MIDAPI_TIME_SCALE", "MIDAPI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MIDAPI_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("MIDAPI_TIME_SCALE", "240")
    Path("key.txt").write_text("\ufeff file \n", encoding="utf-8")
    return ("--base-url", midapi_sandbox.url, "--api-key-file", "key.txt")


def test_each_command_uses_the_named_service_and_key(
    midapi: Midapi,
    midapi_sandbox: SandboxThread,
    options: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the environment says."""
    monkeypatch.setenv("MIDAPI_API_KEY", secrets.API_KEY)
    made = midapi("generate", "a red fox", "--json", *options)
    assert made.code == 0, made.err
    task_id = only(midapi_sandbox.ledger.accepted).task_id
    for command in (("task", task_id), ("credits",), ("doctor",)):
        before = len(midapi_sandbox.ledger.requests)
        ran = midapi(*command, *options)
        assert ran.code == 0, ran.out + ran.err
        assert len(midapi_sandbox.ledger.requests) > before
        assert not secrets.found_in(ran.out + ran.err)


def test_the_key_of_a_file_needs_no_other(
    midapi: Midapi, midapi_sandbox: SandboxThread, options: tuple[str, ...]
) -> None:
    """No key is in the environment."""
    assert midapi("credits", *options).lines == ["10000"]
    assert midapi("credits", *options[:2]).code == 2


def test_the_journal_acts_with_the_key_of_a_file(
    midapi: Midapi,
    midapi_sandbox: SandboxThread,
    options: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the service that is stored with the intent, so there is no ``--base-url``."""
    monkeypatch.setenv("MIDAPI_JOURNAL", "journal")
    midapi_sandbox.faults.on("submit", nth=1, do=lose_answer())
    intent_id = midapi("generate", "a fox", "--json", *options).json["error"]["intent_id"]
    assert midapi("journal", "resubmit", intent_id, *options[2:]).code == 0
    assert len(midapi_sandbox.ledger.accepted) == 2
    assert midapi("journal", "resubmit", intent_id, *options).code == 2


def test_a_key_file_that_cannot_be_used_is_a_usage_error(
    midapi: Midapi, midapi_sandbox: SandboxThread, options: tuple[str, ...]
) -> None:
    """It is named, and its contents are not shown."""
    Path("binary").write_bytes(b"\xff\xfe\x00")
    Path("empty").write_text("\n")
    for name, problem in (
        ("missing", "No such file or directory"),
        ("binary", "it is not text"),
        ("empty", "is empty"),
    ):
        ran = midapi("credits", *options[:2], "--api-key-file", name)
        assert ran.code == 2
        assert f"the file '{name}'" in ran.error
        assert problem in ran.error
    assert not midapi_sandbox.ledger.requests


@pytest.mark.parametrize("url", ["127.0.0.1:8787", "http://example.org", "https://a b"])
def test_a_wrong_base_url_is_a_usage_error(url: str, midapi: Midapi) -> None:
    """Before anything is sent."""
    Path("key.txt").write_text("key")
    ran = midapi("credits", "--base-url", url, "--api-key-file", "key.txt")
    assert ran.code == 2
    assert "base_url" in ran.error


def test_no_option_takes_a_key(midapi: Midapi) -> None:
    """Other users of the machine could read it."""
    ran = midapi("credits", "--api-key", "x")
    assert ran.code == 2
    assert "Unknown option: --api-key." in ran.error
