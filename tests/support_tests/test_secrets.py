"""A secret is found in what a value says of itself."""

import pytest

from tests.support import secrets


@pytest.mark.parametrize(
    "value", [secrets.API_KEY, ValueError(secrets.WEBHOOK_KEY), ["https://host/mjt_" + "a" * 20]]
)
def test_a_secret_is_found(value: object) -> None:
    """In the str or the repr of any value."""
    with pytest.raises(AssertionError, match=f"a {type(value).__name__} shows"):
        secrets.assert_none_in("harmless", value)


def test_what_is_no_secret_is_let_through() -> None:
    """A token's prefix alone is none."""
    secrets.assert_none_in("mjt_short", b"bytes", None, {"key": "value"})
