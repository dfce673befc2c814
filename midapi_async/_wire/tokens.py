"""Tokens: the unguessable part of an intent's callback URL. Each is a secret.

They all begin with ``mjt_``, so that a token can be removed from any text before it is shown.
"""

from __future__ import annotations

import hashlib
import re
import secrets

from .._runtime.secret import Secret

# Matches also a token that was cut off, since its rest could be guessed.
_TOKEN = re.compile(r"mjt_[A-Za-z0-9_-]{16,}")
_WHOLE_TOKEN = re.compile(r"mjt_[A-Za-z0-9_-]{43}(?![A-Za-z0-9_-])")


def new_token() -> Secret:
    """A new token: 256 random bits, safe in a URL's path."""
    return Secret(f"mjt_{secrets.token_urlsafe(32)}")


def token_hash(token: str) -> str:
    """The hash of a token, which the journal stores in its place."""
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()


def has_token(url: object, ours: str | None) -> bool | None:
    """Whether a callback URL contains the token with this hash; None if that cannot be known.

    It cannot without a URL or a hash, or if the token was cut off. Slashes and other characters of
    the URL may be escaped.
    """
    if ours is None or not isinstance(url, str):
        return None
    if tokens := _WHOLE_TOKEN.findall(url):
        return ours in map(token_hash, tokens)
    return None if "mjt_" in url else False


def has_foreign_token(text: object, ours: str | None) -> bool:
    """Whether a text contains a token, and none with this hash; False without a hash.

    A token that was cut proves nothing.
    """
    return has_token(text, ours) is False and "mjt_" in str(text)


def without_tokens(text: str) -> str:
    """The text with every token removed."""
    return _TOKEN.sub("mjt_…", text) if "mjt_" in text else text
