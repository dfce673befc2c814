import pytest

from midapi_async.cli.credits import amount
from midapi_async.sandbox import SandboxThread
from tests.cli.conftest import Midapi

pytestmark = [pytest.mark.real_time, pytest.mark.midapi_sandbox(credits=12.5)]


def test_the_credits_are_printed(midapi: Midapi, midapi_sandbox: SandboxThread) -> None:
    """A number on a line of its own."""
    ran = midapi("credits")
    assert (ran.code, ran.out, ran.err) == (0, "12.50\n", "")


def test_the_credits_as_json(midapi: Midapi, midapi_sandbox: SandboxThread) -> None:
    """One object."""
    assert midapi("credits", "--json").json == {"credits": 12.5}


def test_without_a_key_it_says_what_to_do(midapi: Midapi) -> None:
    """A usage error that names the variables, and what works without a key."""
    ran = midapi("credits", "--json")
    assert ran.code == 2
    assert "set MIDAPI_API_KEY or MIDAPI_API_KEY_FILE" in ran.error
    assert "midapi demo" in ran.error
    assert ran.json["error"]["type"] == "InvalidRequestError"


def test_another_problem_of_the_key_is_told_as_it_is(
    midapi: Midapi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text of the SDK, without the key."""
    monkeypatch.setenv("MIDAPI_API_KEY", "a b")
    ran = midapi("credits")
    assert ran.code == 2
    assert "api_key: holds a character that no API key has" in ran.error


@pytest.mark.midapi_sandbox(api_key="a-good-key")
def test_i5_a_wrong_key_is_an_error_that_does_not_show_it(
    midapi: Midapi, midapi_sandbox: SandboxThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 1; the key stands nowhere."""
    monkeypatch.setenv("MIDAPI_API_KEY", "a-wrong-key")
    ran = midapi("credits", "--json", "--verbose")
    assert ran.code == 1
    assert ran.json["error"]["type"] == "AuthenticationError"
    assert "a-wrong-key" not in ran.out + ran.err


def test_a_server_that_is_not_there_is_an_error(
    midapi: Midapi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 1, one line."""
    monkeypatch.setenv("MIDAPI_API_KEY", "key")
    monkeypatch.setenv("MIDAPI_BASE_URL", "http://127.0.0.1:9")
    ran = midapi("credits")
    assert ran.code == 1
    assert "MidAPI could not be reached" in ran.error


@pytest.mark.parametrize(("credit", "text"), [(3.0, "3"), (0.125, "0.12"), (10_000.0, "10000")])
def test_an_amount_has_a_fraction_only_where_there_is_one(credit: float, text: str) -> None:
    """Two digits at the most."""
    assert text == amount(credit)
