"""The URL of a database: what is read from it, and that its password shows nowhere."""

import string
from urllib.parse import quote, unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midapi_async import InvalidRequestError, MidAPIClient
from midapi_async.journal.postgres import PostgresJournal
from midapi_async.journal.postgres.journal import read_url
from tests.support import secrets

WORD = secrets.known("pa55-word-of-postgres")


@pytest.mark.parametrize(
    ("url", "target", "place", "schema"),
    [
        (f"postgresql://u:{WORD}@h/d", None, "postgresql://h/d", "midapi"),
        (f"postgres://u:{WORD}@h:5433/d", None, "postgresql://h:5433/d", "midapi"),
        (f"postgresql://u:{WORD}@[::1]:1/d", None, "postgresql://[::1]:1/d", "midapi"),
        (f"postgresql://u:{WORD}@ss@h/d", None, "postgresql://h/d", "midapi"),
        (
            f"postgresql://u:{WORD}@a:1,b:2/d?target_session_attrs=primary&schema=other",
            f"postgresql://u:{WORD}@a:1,b:2/d?target_session_attrs=primary",
            *("postgresql://a:1,b:2/d", "other"),
        ),
        (f"postgresql://h/d?password={WORD}&user=u", None, "postgresql://h/d", "midapi"),
        (
            "postgresql:///d?host=/run/postgresql&schema=s",
            "postgresql:///d?host=%2Frun%2Fpostgresql",
            *("postgresql:///d", "s"),
        ),
        ("postgresql://h/d?schema=s", "postgresql://h/d", "postgresql://h/d", "s"),
    ],
)
def test_what_a_url_says(url: str, target: str | None, place: str, schema: str) -> None:
    """The driver gets all but the schema; people see the host and the database."""
    found = read_url(url)
    assert (unquote(found[0]), *found[1:]) == (unquote(target or url), place, schema)
    assert repr(PostgresJournal(url)) == f"<PostgresJournal {place.partition('//')[2]} closed>"
    secrets.assert_none_in(found[1:], PostgresJournal(url), repr(found))


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://u:{WORD}/x@h/d",
        f"postgresql://u:x/{WORD}@h/d",
        f"postgresql://u:x#{WORD}@h/d",
        f"postgresql://u:x?{WORD}@h/d",
        f"postgresql://u:{WORD}@h:port/d",
        f"postgresql://u:{WORD}@h:65536/d",
        f"postgresql://u:{WORD}@[::1/d",
        f"postgresql:/u:{WORD}@h/d",
        f"postgres:{WORD}",
    ],
)
def test_a_wrong_url_is_not_shown(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by the journal nor by a client, and not in the variables of a traceback."""
    monkeypatch.setenv("MIDAPI_JOURNAL", url)
    for make in (
        lambda: PostgresJournal(url),
        lambda: MidAPIClient(secrets.API_KEY, journal=url),
        lambda: MidAPIClient(secrets.API_KEY),
    ):
        with pytest.raises(InvalidRequestError, match=r"a URL like postgresql://") as caught:
            make()
        secrets.assert_none_in(caught.value, caught.value.problems)
        assert secrets.found_in_locals(caught.value) == []


TEXTS = st.text(string.printable, min_size=1)


@given(TEXTS, TEXTS, st.sampled_from(["h", "h:1", "h:1,[::1]", ""]))
def test_every_password_can_be_written(user: str, password: str, hosts: str) -> None:
    """As %40 and so on; what is shown has nothing of it."""
    url = f"postgresql://{quote(user, safe='')}:{quote(password, safe='')}@{hosts}/d"
    target, place, _ = read_url(url)
    parts = urlsplit(target)
    assert (unquote(parts.username or ""), unquote(parts.password or "")) == (user, password)
    assert place == f"postgresql://{hosts}/d"
