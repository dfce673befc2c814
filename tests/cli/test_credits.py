import pytest

from midapi_async.cli.credits import amount
from midapi_async.sandbox import SandboxThread
from tests.cli.conftest import Midapi

pytestmark = [pytest.mark.real_time, pytest.mark.midapi_sandbox(credits=12.5)]


def test_the_credits_are_printed(midapi: Midapi, midapi_sandbox: SandboxThread) -> None:
    """One line with the number."""
    ran = midapi("credits")
    assert (ran.code, ran.out, ran.err) == (0, "12.50\n", "")


def test_the_credits_are_printed_as_json(midapi: Midapi, midapi_sandbox: SandboxThread) -> None:
    """One object."""
    assert midapi("credits", "--json").json == {"credits": 12.5}


def test_a_missing_api_key_is_a_usage_error(midapi: Midapi) -> None:
    """The message names the variables, and the commands that need no key."""
    ran = midapi("credits", "--json")
    assert ran.code == 2
    assert "set MIDAPI_API_KEY or MIDAPI_API_KEY_FILE" in ran.error
    assert "midapi demo" in ran.error
    assert ran.json["error"]["type"] == "InvalidRequestError"


def test_a_malformed_api_key_is_a_usage_error(
    midapi: Midapi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message is the text of the SDK, without the key."""
    monkeypatch.setenv("MIDAPI_API_KEY", "a b")
    ran = midapi("credits")
    assert ran.code == 2
    assert "api_key: contains a character that no API key has" in ran.error


@pytest.mark.midapi_sandbox(api_key="a-good-key")
@pytest.mark.fault("I5")
def test_a_refused_api_key_is_an_error_that_does_not_show_it(
    midapi: Midapi, midapi_sandbox: SandboxThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 1; no output contains the key."""
    monkeypatch.setenv("MIDAPI_API_KEY", "a-wrong-key")
    ran = midapi("credits", "--json", "--verbose")
    assert ran.code == 1
    assert ran.json["error"]["type"] == "AuthenticationError"
    assert "a-wrong-key" not in ran.out + ran.err


def test_an_unreachable_service_is_an_error(
    midapi: Midapi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 1, one line."""
    monkeypatch.setenv("MIDAPI_API_KEY", "key")
    monkeypatch.setenv("MIDAPI_BASE_URL", "http://127.0.0.1:9")
    ran = midapi("credits")
    assert ran.code == 1
    assert "MidAPI could not be reached" in ran.error


@pytest.mark.parametrize(("credit", "text"), [(3.0, "3"), (0.125, "0.12"), (10_000.0, "10000")])
def test_an_amount_has_at_most_two_decimals(credit: float, text: str) -> None:
    """A whole number has none."""
    assert amount(credit) == text
