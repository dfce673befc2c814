"""Tokens can be recognised in any text, and cannot be guessed."""

import html
import re
from collections.abc import Callable
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midapi_async._wire.tokens import has_token, new_token, token_hash, without_tokens
from tests.support import secrets


def test_a_token_is_unguessable_and_safe_in_a_path() -> None:
    """256 random bits in the URL-safe alphabet, another one each time."""
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(re.fullmatch(r"mjt_[A-Za-z0-9_-]{43}", token) for token in tokens)


def test_the_journal_keeps_a_hash() -> None:
    """The hash is equal for equal tokens and shows nothing of them; no str breaks it."""
    token = new_token()
    assert token_hash(token) == token_hash(token)
    assert token_hash(token) != token_hash(new_token())
    assert re.fullmatch("[0-9a-f]{64}", token_hash(token))
    assert len(token_hash("\ud800é\0")) == 64


@given(st.text(), st.text())
def test_every_token_is_taken_out_of_a_text(before: str, behind: str) -> None:
    """Whatever stands around a token, it does not show, and the text before it stays."""
    token = new_token()
    clean = without_tokens(f"{before}/{token}{behind}{token}")
    assert token not in clean
    assert not secrets.TOKEN.search(clean)


@pytest.mark.parametrize("length", [16, 20, 42, 43])
def test_the_first_part_of_a_token_is_taken_out_too(length: int) -> None:
    """A text that was cut inside a token shows too little of it to guess the rest."""
    cut = new_token()[: 4 + length]
    assert without_tokens(f"see {cut}") == "see mjt_…"


@pytest.mark.parametrize("text", ["", "mj_task_0123456789abcdef", "mjt_short", "a red fox"])
def test_other_texts_stay(text: str) -> None:
    """What is no token is left as it is."""
    assert text == without_tokens(text)


@pytest.mark.fault("C26")
@pytest.mark.parametrize(
    "change", [str, html.escape, quote, str.strip, lambda url: f"{url}/?x=1#y"]
)
def test_a_changed_callback_url_is_still_recognised(change: Callable[[str], str]) -> None:
    """MidAPI may have stored it escaped; the token has no character that is ever escaped."""
    ours, theirs = new_token(), new_token()
    url = f"https://me.example/a?b=1&c='d'/{ours}"
    assert has_token(change(url), token_hash(ours)) is True
    assert has_token(change(url), token_hash(theirs)) is False


@pytest.mark.fault("C26")
@given(st.integers(0, 130))
def test_a_callback_url_that_was_cut_proves_nothing_more_than_it_shows(length: int) -> None:
    """Cut in the token it may be ours; without a token of ours it is another program's."""
    token = new_token()
    url = f"https://me.example/hooks/midapi/{token}"
    shown = has_token(url[:length], token_hash(token))
    assert shown is (True if length >= len(url) else None if "mjt_" in url[:length] else False)


@pytest.mark.parametrize("url", [None, 5, ["mjt_"]])
def test_without_a_url_or_a_hash_nothing_is_known(url: object) -> None:
    """Of a record without one, or of an intent with a callback URL of the user's own."""
    assert has_token(url, token_hash("x")) is None
    assert has_token(f"https://me.example/{new_token()}", None) is None
