"""Tokens: unguessable names of intents, part of their callback URLs. Each is a secret.

Their form can be recognised, so that a token can be taken out of any text before it is shown.
"""

from __future__ import annotations

import hashlib
import re
import secrets

# Also the first part of one, from where the rest could be guessed.
_TOKEN = re.compile(r"mjt_[A-Za-z0-9_-]{16,}")


def new_token() -> str:
    """A new token: 256 random bits, safe in a URL's path."""
    return f"mjt_{secrets.token_urlsafe(32)}"


def token_hash(token: str) -> str:
    """What the journal keeps in place of the token."""
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()


def without_tokens(text: str) -> str:
    """The text with every token taken out."""
    return _TOKEN.sub("mjt_…", text) if "mjt_" in text else text
