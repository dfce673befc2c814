"""Settings are checked before anything is sent, and a key is never shown."""

import ast
import os
import re
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from yarl import URL

from midapi_async import CallbackReceiver, config
from midapi_async._runtime.urls import is_loopback
from midapi_async.config import (
    PollPolicy,
    RateLimit,
    RetryPolicy,
    Timeouts,
    environment,
    secret_from_env,
    settings,
)
from midapi_async.errors import InvalidRequestError
from tests.support import secrets
from tests.support.secrets import API_KEY, WEBHOOK_KEY

LOCAL = "http://127.0.0.1:8787"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of ours, but for what a test sets."""
    for name in [name for name in os.environ if name.startswith("MIDAPI_")]:
        monkeypatch.delenv(name)
    config._warn_once.cache_clear()  # each test is a process of its own


def problems_of(make: Callable[[], object]) -> dict[str, str]:
    """The problems that a refused call reports; the key is not in them."""
    with pytest.raises(InvalidRequestError) as caught:
        make()
    secrets.assert_none_in(caught.value)
    assert str(caught.value).isprintable()
    return caught.value.problems


def test_each_environment_variable_is_in_the_table() -> None:
    """`config` is the only reader, and its docstring names each variable that anything asks for."""
    folder = Path(config.__file__).parent
    asked, readers = set(), set()
    for file in sorted(folder.rglob("*.py")):
        room = file.relative_to(folder).parts[0]
        if room in {"cli", "sandbox"}:  # they read what their own commands need
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}:
                readers.add(room)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
                name = getattr(node.args[0], "value", None)
                if node.func.id == "environment" and isinstance(name, str):
                    asked.add(name)
                elif node.func.id == "secret_from_env" and isinstance(name, str):
                    asked |= {name, name + "_FILE"}
    assert readers == {"config.py"}
    assert asked == set(re.findall(r"MIDAPI_[A-Z_]+", config.__doc__ or ""))


# ─── the API key ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.fault("I5")
def test_the_key_is_not_shown() -> None:
    """It is there, and neither the repr nor the str of the settings has it."""
    made = settings(API_KEY)
    assert made.api_key == API_KEY
    secrets.assert_none_in(made)


def test_the_key_comes_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An argument beats MIDAPI_API_KEY, which beats the file of MIDAPI_API_KEY_FILE."""
    file = tmp_path / "key"
    file.write_text("from-the-file\n")
    monkeypatch.setenv("MIDAPI_API_KEY_FILE", str(file))
    assert settings().api_key == "from-the-file"
    monkeypatch.setenv("MIDAPI_API_KEY", " from-the-variable ")
    assert settings().api_key == "from-the-variable"
    assert settings("given\n").api_key == "given"


def test_a_file_with_a_byte_order_mark_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As Windows' editors write it."""
    file = tmp_path / "key"
    file.write_bytes(b"\xef\xbb\xbfkey\r\n")
    monkeypatch.setenv("MIDAPI_API_KEY_FILE", str(file))
    assert settings().api_key == "key"


# How a value comes out of env files and other places, and what the one warning names.
WRAPPED = [
    ("{}", ""),
    (" {}\r\n", ""),
    ("\ufeff{}", ""),
    ('"{}"', "quotes"),
    ("'{}'", "quotes"),
    ("“{}”", "quotes"),
    (' "{} " \n', "quotes"),
    ("'\"{}\"'", "quotes"),
    ('\ufeff"{}"', "quotes"),
]
BEARER = [
    ("Bearer {}", "Bearer"),
    ("bearer  {}", "Bearer"),
    ("Authorization: Bearer {}", "Bearer"),
    ("Bearer '{}'", "quotes|Bearer"),
    ('"Bearer {}"', "quotes|Bearer"),
]


@pytest.mark.parametrize("way", ["argument", "variable", "file"])
@pytest.mark.parametrize("wrapping", WRAPPED + BEARER)
def test_quotes_and_bearer_around_a_key_are_removed(
    wrapping: tuple[str, str],
    way: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Quotes, a byte order mark, the word of the header; one warning, which does not show it."""
    given_key, (wrapped, names) = None, wrapping
    if way == "argument":
        given_key = wrapped.format(API_KEY)
    elif way == "variable":
        monkeypatch.setenv("MIDAPI_API_KEY", wrapped.format(API_KEY))
    else:
        file = tmp_path / "key"
        file.write_bytes(wrapped.format(API_KEY).encode())
        monkeypatch.setenv("MIDAPI_API_KEY_FILE", f'"{file}"' if names else str(file))
    for _ in range(3):
        assert settings(given_key).api_key == API_KEY
    found = [record.getMessage() for record in caplog.records]
    assert all(record.levelname == "WARNING" for record in caplog.records)
    if way == "file" and names:
        found.remove(
            "the quotes around MIDAPI_API_KEY_FILE were removed; write the value without them"
        )
    assert len(found) == len([each for each in names.split("|") if each])
    assert all(each in " ".join(found) for each in names.split("|"))
    secrets.assert_none_in(*found)


@pytest.mark.parametrize("given_key", ['""', "''", "Bearer", " bearer ", '"Bearer "', "\ufeff"])
def test_quotes_or_bearer_without_a_key_are_refused(given_key: str) -> None:
    """Not the word Bearer, and not a pair of quotes."""
    assert "is missing" in problems_of(lambda: settings(given_key))["api_key"]


@pytest.mark.parametrize("more", ['"', "'", '"x"'])
def test_an_unpaired_quote_is_reported(more: str) -> None:
    """A quote without its pair, or in the middle, is not removed: that would hide a mistake."""
    for wrong in (f"{API_KEY}{more}", f"{more}{API_KEY}"):
        assert "character" in problems_of(partial(settings, wrong))["api_key"]


@pytest.mark.parametrize(("wrapped", "names"), WRAPPED)
def test_quotes_around_any_variable_are_removed(
    wrapped: str, names: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each of them comes from the same files; one warning names each one."""
    values = {
        "MIDAPI_BASE_URL": LOCAL,
        "MIDAPI_TIME_SCALE": "60",
        "MIDAPI_ALLOW_HTTP": "1",
        "MIDAPI_JOURNAL": "some folder",
        "MIDAPI_PUBLIC_URL": "https://bot.example/hook",
        "MIDAPI_CALLBACK_PORT": "8080",
        "MIDAPI_WEBHOOK_KEY": WEBHOOK_KEY,
    }
    for name, value in values.items():
        monkeypatch.setenv(name, wrapped.format(value))
    for _ in range(2):
        assert {name: environment(name) for name in values} == values
        assert settings(API_KEY).time_scale == 60.0
        assert CallbackReceiver.from_env() is not None
    found = [record.getMessage() for record in caplog.records]
    assert len(found) == (len(values) if names else 0)
    secrets.assert_none_in(*found)


def test_each_of_several_webhook_keys_may_be_quoted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Line by line, as they are read."""
    (tmp_path / "keys").write_text("'one'\r\n\"two\"\nthree\n")
    monkeypatch.setenv("MIDAPI_WEBHOOK_KEY_FILE", str(tmp_path / "keys"))
    problems: dict[str, str] = {}
    assert secret_from_env("MIDAPI_WEBHOOK_KEY", problems, "webhook_key") == "one\ntwo\nthree"
    monkeypatch.setenv("MIDAPI_WEBHOOK_KEY", '"one"\n"two"')
    assert secret_from_env("MIDAPI_WEBHOOK_KEY", problems, "webhook_key") == "one\ntwo"
    monkeypatch.setenv("MIDAPI_WEBHOOK_KEY", '"one\ntwo"')
    assert secret_from_env("MIDAPI_WEBHOOK_KEY", problems, "webhook_key") == "one\ntwo"
    assert problems == {}


@pytest.mark.parametrize("given_key", [None, "", "  ", "\n"])
def test_no_key_is_reported(given_key: str | None) -> None:
    """With each of the three ways to give one."""
    found = problems_of(lambda: settings(given_key))
    assert set(found) == {"api_key"}
    assert all(way in found["api_key"] for way in ("api_key=", "MIDAPI_API_KEY ", "_FILE"))


@pytest.mark.parametrize("more", [" x", "\tx", "\nHost: evil", "\x00", "é", "\ud800"])
def test_a_key_that_cannot_stand_in_a_header_is_refused(more: str) -> None:
    """A blank, a line break, anything but ASCII; the key itself is not shown."""
    assert "character" in problems_of(lambda: settings(f"{API_KEY}{more}x"))["api_key"]


@pytest.mark.parametrize("key", [b"bytes", 5, ["x"], True])
def test_a_key_of_another_kind_is_refused(key: object) -> None:
    """Nothing is turned into a str."""
    found = problems_of(lambda: settings(key))  # type: ignore[arg-type]  # what is tested
    assert "must be a str" in found["api_key"]


def test_a_key_file_that_cannot_be_read_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Absent, a folder, no text, empty: named with the file and the reason."""
    folder, binary, empty = tmp_path / "folder", tmp_path / "binary", tmp_path / "empty"
    folder.mkdir()
    binary.write_bytes(b"\xff\xfe\x00")
    empty.write_text("\n")
    for file, reason in [
        (tmp_path / "absent", "No such file"),
        (folder, "directory"),
        (binary, "not text"),
        (empty, "is missing"),
    ]:
        monkeypatch.setenv("MIDAPI_API_KEY_FILE", str(file))
        found = problems_of(settings)["api_key"]
        assert reason in found
        assert file is empty or str(file) in found


# ─── the base URL ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("given_url", "expected"),
    [
        (None, "https://api.midapi.ai/"),
        ("https://api.midapi.ai/", "https://api.midapi.ai/"),
        ("HTTPS://API.MidAPI.AI", "https://api.midapi.ai/"),
        ("https://api.midapi.ai:443", "https://api.midapi.ai/"),
        ("https://proxy.example:8443//", "https://proxy.example:8443/"),
        ("https://[2001:db8::1]:8443", "https://[2001:db8::1]:8443/"),
        ("http://127.0.0.1:8787", "http://127.0.0.1:8787/"),
        ("http://127.1.2.3", "http://127.1.2.3/"),
        ("http://localhost:1", "http://localhost:1/"),
        ("http://LOCALHOST:1", "http://localhost:1/"),
        ("http://[::1]:8787", "http://[::1]:8787/"),
        ("http://[::ffff:127.0.0.1]:8787", str(URL("http://[::ffff:127.0.0.1]:8787/"))),
    ],
)
def test_a_base_url_is_taken(given_url: str | None, expected: str) -> None:
    """https anywhere, http on this machine."""
    assert str(settings(API_KEY, given_url).base_url) == expected


@pytest.mark.parametrize(
    ("given_url", "tells"),
    [
        ("api.midapi.ai", "like https://api.midapi.ai"),
        ("//api.midapi.ai", "like https://api.midapi.ai"),
        ("https://", "like https://api.midapi.ai"),
        ("https:api.midapi.ai", "like https://api.midapi.ai"),
        ("ftp://api.midapi.ai", "like https://api.midapi.ai"),
        ("file:///etc/passwd", "like https://api.midapi.ai"),
        ("https://[::1", "like https://api.midapi.ai"),
        ("https://h:99999", "like https://api.midapi.ai"),
        ("https://h:port", "like https://api.midapi.ai"),
        ("https://\ud800.com", "like https://api.midapi.ai"),
        ("nonsense", "like https://api.midapi.ai"),
        (f"https://{API_KEY}@h", "nothing but scheme"),
        (f"https://user:{API_KEY}@h", "nothing but scheme"),
        (f"https://:{API_KEY}@h", "nothing but scheme"),
        (f"https://h?key={API_KEY}", "nothing but scheme"),
        ("https://h/#fragment", "nothing but scheme"),
        ("https://api.midapi.ai/api/v1", "has a path, and must contain nothing but scheme, host"),
        ("https://api.midapi.ai/api/v1", "like https://api.midapi.ai"),
        ("https://proxy.example:8443/midapi/", "like https://proxy.example:8443"),
        ("http://127.0.0.1:8787/api", "like http://127.0.0.1:8787"),
        ("https://h/a?b=1", "has a path and a query"),
        ("https://h?b=1", "has a query"),
        (f"https://:{API_KEY}@h", "has a user name or password"),
        ("api.midapi.ai/api/v1", "must begin with https:// or http://, like https://api.midapi.ai"),
        ("127.0.0.1:8787", "must begin with https:// or http://, like http://127.0.0.1:8787"),
        ("localhost:8787/x", "like http://localhost:8787"),
        (API_KEY, "like https://api.midapi.ai"),
        (f"https://u:{API_KEY}/x@h", "like https://api.midapi.ai"),
        ("https://api.midapi.ai ", "a blank"),
        ("http://api.midapi.ai", "must be https"),
        ("http://10.0.0.1", "must be https"),
        ("http://0.0.0.0", "must be https"),
        ("http://[::ffff:10.0.0.1]", "must be https"),
        ("http://localhost.evil.example", "must be https"),
        ("http://127.0.0.1.evil.example", "must be https"),
        (b"https://h", "like https://api.midapi.ai"),
        (5, "like https://api.midapi.ai"),
        ("https://h/a b", "a blank"),
        ("https://h/a\x00", "a control character"),
    ],
)
def test_a_base_url_is_refused(given_url: object, tells: str) -> None:
    """With what is wrong, and without the URL, which may hold a password."""
    found = problems_of(lambda: settings(API_KEY, given_url))  # type: ignore[arg-type]  # tested
    assert set(found) == {"base_url"}
    assert tells in found["base_url"]


def test_http_beyond_loopback_is_allowed_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the argument or by MIDAPI_ALLOW_HTTP; the key travels unencrypted then."""
    with pytest.warns(UserWarning, match="unencrypted"):
        settings(API_KEY, "http://sandbox:8787", allow_http=True)
    for value in ("1", "true", "YES", " on "):
        monkeypatch.setenv("MIDAPI_ALLOW_HTTP", value)
        with pytest.warns(UserWarning, match="unencrypted"):
            settings(API_KEY, "http://sandbox:8787")
    for value in ("0", "false", "no", "off", "", "maybe"):
        monkeypatch.setenv("MIDAPI_ALLOW_HTTP", value)
        assert set(problems_of(lambda: settings(API_KEY, "http://sandbox:8787"))) == {"base_url"}


def test_allowed_http_warns_only_where_it_is_used() -> None:
    """https and loopback stay silent."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        settings(API_KEY, LOCAL, allow_http=True)
        settings(API_KEY, "https://sandbox:8787", allow_http=True)


def test_the_base_url_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument beats MIDAPI_BASE_URL; a bad one of either is found."""
    monkeypatch.setenv("MIDAPI_BASE_URL", f" {LOCAL} ")
    assert URL(LOCAL) == settings(API_KEY).base_url
    assert settings(API_KEY, "https://h").base_url.host == "h"
    for bad in (
        "http://sandbox:8787",
        "https://api.midapi.ai/api/v1",
        "api.midapi.ai",
        "https://u@h",
    ):
        monkeypatch.setenv("MIDAPI_BASE_URL", bad)
        found = problems_of(lambda: settings(API_KEY))
        assert set(found) == {"base_url"}
        assert found["base_url"].startswith("MIDAPI_BASE_URL ")
        assert "MIDAPI_BASE_URL" not in problems_of(lambda: settings(API_KEY, bad))["base_url"]  # noqa: B023 - called at once


@pytest.mark.parametrize(
    ("base_url", "given", "variable", "expected"),
    [
        (None, None, None, None),
        ("https://h", None, None, None),
        (LOCAL, None, None, f"{LOCAL}/"),
        ("https://localhost:8787", None, None, "https://localhost:8787/"),
        ("https://api.kie.ai", None, None, "https://kieai.redpandaai.co/"),
        ("https://notkie.ai", None, None, None),
        ("https://api.kie.ai", None, "https://u", "https://u/"),
        ("https://api.kie.ai", "https://v", "https://u", "https://v/"),
        (LOCAL, "", "https://u", "https://u/"),
        (None, LOCAL, None, f"{LOCAL}/"),
    ],
)
def test_the_upload_url_is_known_where_it_is_documented(
    monkeypatch: pytest.MonkeyPatch,
    base_url: str | None,
    given: str | None,
    variable: str | None,
    expected: str | None,
) -> None:
    """For the sister and for a sandbox; an argument beats MIDAPI_UPLOAD_URL, which beats both."""
    if variable is not None:
        monkeypatch.setenv("MIDAPI_UPLOAD_URL", variable)
    made = settings(API_KEY, base_url, upload_url=given)
    assert made.upload_url == (None if expected is None else URL(expected))


@pytest.mark.parametrize(
    "bad", ["http://sandbox:8787", "https://h/api", "files.example", "https://u@h", "https://h?a=b"]
)
def test_a_bad_upload_url_is_found_by_the_rules_of_the_base_url(
    monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    """With the same text, since the API key goes there as well."""
    found = problems_of(lambda: settings(API_KEY, upload_url=bad))
    assert found == {"upload_url": problems_of(lambda: settings(API_KEY, bad))["base_url"]}
    monkeypatch.setenv("MIDAPI_UPLOAD_URL", bad)
    assert problems_of(lambda: settings(API_KEY)) == {
        "upload_url": f"MIDAPI_UPLOAD_URL {found['upload_url']}"
    }


def test_an_http_upload_url_can_be_allowed() -> None:
    """The warning says which URL it is."""
    with pytest.warns(UserWarning, match="to an http upload URL"):
        made = settings(API_KEY, upload_url="http://sandbox:8787", allow_http=True)
    assert URL("http://sandbox:8787/") == made.upload_url


@pytest.mark.parametrize("bad", ["https://api.midapi.ai/api/v1", "nonsense", "http://10.0.0.1"])
def test_a_wrong_base_url_does_not_blame_the_time_scale(bad: str) -> None:
    """Whether a time scale is allowed is known only when the base URL is."""
    assert set(problems_of(lambda: settings(API_KEY, bad, 60))) == {"base_url"}


# ─── the proxy ───────────────────────────────────────────────────────────────────────────────────


def test_the_proxy_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument beats MIDAPI_PROXY, also an empty one; HTTPS_PROXY is not read."""
    monkeypatch.setenv("HTTPS_PROXY", "http://other.example:3128")
    assert settings(API_KEY).proxy is None
    monkeypatch.setenv("MIDAPI_PROXY", " http://proxy.example:3128 ")
    assert settings(API_KEY).proxy == "http://proxy.example:3128"
    assert settings(API_KEY, proxy="https://mine.example").proxy == "https://mine.example"
    assert settings(API_KEY, proxy="").proxy is None


@pytest.mark.parametrize(
    "bad", ["proxy.example:3128", "socks5://proxy.example", "http://a b", "http:"]
)
def test_a_wrong_proxy_is_reported(bad: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the right form, and with the variable that it comes from."""
    found = problems_of(lambda: settings(API_KEY, proxy=bad))
    assert set(found) == {"proxy"}
    assert "like http://proxy.example:3128" in found["proxy"]
    monkeypatch.setenv("MIDAPI_PROXY", bad)
    assert problems_of(lambda: settings(API_KEY)) == {"proxy": f"MIDAPI_PROXY {found['proxy']}"}


@pytest.mark.fault("I5")
def test_the_password_of_a_proxy_is_not_shown() -> None:
    """Neither in the settings nor in an error."""
    password = secrets.known("the-password-of-the-proxy")
    secrets.assert_none_in(settings(API_KEY, proxy=f"http://user:{password}@proxy.example:3128"))
    problems_of(lambda: settings(API_KEY, proxy=f"ftp://user:{password}@proxy.example:3128"))


@pytest.mark.parametrize(
    ("given_url", "credit"),
    [
        ("https://api.midapi.ai", "/api/v1/common/credit"),
        ("https://api.kie.ai", "/api/v1/chat/credit"),
        ("https://KIE.AI", "/api/v1/chat/credit"),
        ("https://notkie.ai", "/api/v1/common/credit"),
        ("https://kie.ai.evil.example", "/api/v1/common/credit"),
        ("http://127.0.0.1:8787", "/api/v1/common/credit"),
    ],
)
def test_the_host_chooses_the_path_of_the_credits(given_url: str, credit: str) -> None:
    """kie.ai has another one."""
    assert settings(API_KEY, given_url).credit_path == credit


# ─── the time scale ──────────────────────────────────────────────────────────────────────────────


def test_a_time_scale_is_for_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a sandbox on loopback may be scaled; 1 is no scale."""
    assert settings(API_KEY, LOCAL, 60).time_scale == 60.0
    assert settings(API_KEY, None, 1.0).time_scale == 1.0
    assert set(problems_of(lambda: settings(API_KEY, None, 60))) == {"time_scale"}
    monkeypatch.setenv("MIDAPI_TIME_SCALE", "60")
    assert settings(API_KEY, LOCAL).time_scale == 60.0
    assert settings(API_KEY, LOCAL, 2.0).time_scale == 2.0
    assert set(problems_of(lambda: settings(API_KEY))) == {"time_scale"}


BAD_NUMBERS = [0, -1, float("nan"), float("inf"), True, "x", b"x", [], 10**400, -(10**5000)]
BAD_IDS = ["zero", "negative", "nan", "inf", "bool", "str", "bytes", "list", "huge", "very huge"]


@pytest.mark.parametrize("scale", BAD_NUMBERS, ids=BAD_IDS)
def test_a_bad_time_scale_is_reported(scale: object) -> None:
    """Whatever it is, the error is ours."""
    found = problems_of(lambda: settings(API_KEY, LOCAL, scale))  # type: ignore[arg-type]  # tested
    assert set(found) == {"time_scale"}


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "1e999", "fast", "1,5"])
def test_a_bad_time_scale_in_the_environment_is_reported(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an argument's is."""
    monkeypatch.setenv("MIDAPI_TIME_SCALE", text)
    assert set(problems_of(lambda: settings(API_KEY, LOCAL))) == {"time_scale"}


def test_all_problems_are_reported_at_once() -> None:
    """One error names each setting that is wrong."""
    found = problems_of(lambda: settings("a b", "http://h", -1))
    assert set(found) == {"api_key", "base_url", "time_scale"}


@hypothesis_settings(deadline=None)
@given(st.text(st.characters(exclude_categories=())))
def test_any_text_as_a_base_url_is_taken_or_told(text: str) -> None:
    """Never another error than ours, and what is taken is https or loopback."""
    for url in (text, f"https://{text}", f"http://{text}"):
        try:
            made = settings(API_KEY, url).base_url
        except InvalidRequestError as error:
            found = set(error.problems)
        else:
            found = {"base_url"}
            assert made.scheme == "https" or is_loopback(made)
        assert found == {"base_url"}


# ─── the policies ────────────────────────────────────────────────────────────────────────────────

# Each number of each policy, and whether it may be zero.
NUMBERS = [
    (Timeouts, "connect", False),
    (Timeouts, "submit", False),
    (Timeouts, "look", False),
    (Timeouts, "wait", False),
    (RetryPolicy, "give_up_after", True),
    (PollPolicy, "look_price", False),
    (PollPolicy, "floor", False),
    (PollPolicy, "ceiling", False),
    (PollPolicy, "looks_per_second", False),
    (PollPolicy, "burst", False),
    (RateLimit, "count", False),
    (RateLimit, "per", False),
]


@pytest.mark.parametrize("value", [*BAD_NUMBERS, None], ids=[*BAD_IDS, "none"])
@pytest.mark.parametrize(("policy", "name", "may_be_zero"), NUMBERS)
def test_a_bad_number_is_reported(
    policy: Callable[..., object], name: str, may_be_zero: bool, value: object
) -> None:
    """Every number of every policy is finite and positive; the error names it."""
    if (value == 0 and may_be_zero and value is not False) or (name == "wait" and value is None):
        policy(**{name: value})
        return
    fields = {"count": 20, name: value} if policy is RateLimit else {name: value}
    assert set(problems_of(lambda: policy(**fields))) == {name}


@pytest.mark.parametrize(("policy", "name", "_"), NUMBERS)
def test_a_good_number_is_taken(policy: Callable[..., object], name: str, _: bool) -> None:
    """An int as well as a float."""
    fields = {"count": 20, name: 7} if policy is RateLimit else {name: 7}
    assert getattr(policy(**fields), name) == 7


def test_the_defaults_are_those_of_the_design() -> None:
    """design.md, "Defaults"."""
    assert Timeouts(connect=10, submit=180, look=10, wait=3600) == Timeouts()
    assert RetryPolicy(give_up_after=60) == RetryPolicy()
    looks = {"look_price": 1, "floor": 1, "ceiling": 60, "looks_per_second": 20, "burst": 100}
    assert PollPolicy(**looks) == PollPolicy()
    assert RateLimit(20, per=10.0) == RateLimit(20)


def test_all_bad_timeouts_are_reported_at_once() -> None:
    """One error, three fields."""
    made = problems_of(lambda: Timeouts(connect=0, submit=-1, wait=float("nan")))
    assert set(made) == {"connect", "submit", "wait"}


def test_a_ceiling_is_not_below_the_floor() -> None:
    """Equal is allowed."""
    PollPolicy(floor=5, ceiling=5)
    assert set(problems_of(lambda: PollPolicy(floor=5, ceiling=4.9))) == {"ceiling"}


def test_counts_must_be_whole_numbers() -> None:
    """A fraction is refused for the count of a rate limit and for a burst."""
    assert set(problems_of(lambda: RateLimit(2.5))) == {"count"}  # type: ignore[arg-type]  # tested
    assert set(problems_of(lambda: PollPolicy(burst=2.5))) == {"burst"}  # type: ignore[arg-type]
