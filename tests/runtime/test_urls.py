"""URLs: what can be shown and fetched, what a user may give, what is this machine."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from midapi_async._runtime.urls import host_in_url, is_http_url, is_loopback, url_problem


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("https://h/x", True),
        ("http://h", True),
        *(
            (v, False)
            for v in (None, 5, "", "https://", "ftp://h", " https://h", "https://h\n", "//h")
        ),
    ],
)
def test_a_url_can_be_shown_and_asked_for(value: object, expected: bool) -> None:
    """http or https, printable, without blanks."""
    assert is_http_url(value) is expected


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("https://h/x?a=1#b", None),
        ("HTTP://H", None),
        ("https://[::1]:8/x", None),
        ("https://u:p@h", None),
        (None, "must be a str, got None"),
        (b"https://h", "must be a str, got a bytes"),
        ("https://h/a b", "contains a blank or a control character"),
        ("https://h/\n", "contains a blank or a control character"),
        ("https://h/\ud800", "contains a blank or a control character"),
        ("", "must be an http or https URL"),
        ("h", "must be an http or https URL"),
        ("//h", "must be an http or https URL"),
        ("https://", "must be an http or https URL"),
        ("https:h", "must be an http or https URL"),
        ("https://[::1", "must be an http or https URL"),
        ("https://h:99999", "must be an http or https URL"),
        ("ftp://h", "must be an http or https URL"),
    ],
)
def test_what_is_wrong_with_a_url(value: object, problem: str | None) -> None:
    """The text names the reason and not the URL, which may hold a password."""
    assert url_problem(value) == problem


@pytest.mark.parametrize(
    ("value", "is_good"),
    [
        ("https://h", True),
        ("https://h:8443/a/b", True),
        ("https://h/?", True),
        ("https://h?a=1", False),
        ("https://h/#b", False),
        ("https://u@h", False),
        ("https://:p@h", False),
    ],
)
def test_a_bare_url_has_scheme_host_port_and_path(value: str, is_good: bool) -> None:
    """Anything else is refused, and only where it is asked for."""
    problem = url_problem(value, is_bare=True)
    assert (problem is None) is is_good
    assert problem is None or "nothing but scheme, host, port and path" in problem
    assert url_problem(value) is None


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_is_a_url_or_has_a_problem(text: str) -> None:
    """There is no third outcome, and what is taken can be shown, fetched and parsed."""
    for value in (text, f"https://{text}"):
        if url_problem(value) is None:
            assert value.isprintable()
            assert URL(value).host


@pytest.mark.parametrize(
    ("host", "written"), [("h", "h"), ("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")]
)
def test_an_ipv6_address_stands_in_brackets(host: str, written: str) -> None:
    """So that its colons are not taken for the port's."""
    assert host_in_url(host) == written
    assert URL(f"http://{host_in_url(host)}:80/").host == host


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1", "::ffff:7f00:1"]
)
def test_this_machine(host: str) -> None:
    """By name or address, on each Python: before 3.13 `ipaddress` did not look into IPv6."""
    assert is_loopback(host)
    assert is_loopback(URL(f"http://{host_in_url(host)}:8787/x"))


@pytest.mark.parametrize(
    "host",
    ["", "::", "10.0.0.1", "::ffff:10.0.0.1", "localhost.evil.example", "127.0.0.1.evil.example"],
)
def test_other_hosts_are_not_this_machine(host: str) -> None:
    """Least of all names that begin like it."""
    assert not is_loopback(host)
