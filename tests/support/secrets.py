"""The secrets that the tests use, and how to find one where it must not be (I5)."""

import re

API_KEY = "test-api-key-5b1f0c9e7d"
WEBHOOK_KEY = "test-webhook-key"  # of the wire document's test vector
TOKEN = re.compile(r"mjt_[A-Za-z0-9_-]{20,}")

_known = {API_KEY, WEBHOOK_KEY}


def known(secret: str) -> str:
    """Return a further secret, which from now on must show nowhere either."""
    _known.add(secret)
    return secret


def found_in(text: str) -> list[str]:
    """Return every secret that the text shows."""
    return sorted(secret for secret in _known if secret in text) + TOKEN.findall(text)


def assert_none_in(*values: object) -> None:
    """Fail if the `str` or the `repr` of a value shows a secret."""
    for value in values:
        for text in (str(value), repr(value)):
            assert not found_in(text), f"a {type(value).__name__} shows {found_in(text)}: {text}"
