"""MidAPI's signature of a callback: one outcome, whatever the headers hold."""

import base64
import hashlib
import hmac
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midapi_async.receiver.signature import SIGNATURE_HEADER, TIMESTAMP_HEADER, is_signed, signature
from tests.support.secrets import WEBHOOK_KEY

# The vector of the wire document's section 5.
KEY = WEBHOOK_KEY.encode()
TASK = "9f47c52047dda21bb3df0488736cce57"
TIME = "1760557532"
GOOD = "2xxmyCg67WXJLWSPTYo9hzyTaOawZ9NnLXY684Tj+u4="


def headers(times: Sequence[str], signatures: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """The two headers, each with its values."""
    return {TIMESTAMP_HEADER: times, SIGNATURE_HEADER: signatures}


def signed(time: str) -> str:
    """A right signature, computed here and not by the code under test."""
    digest = hmac.new(KEY, f"{TASK}.{time}".encode(), hashlib.sha256).digest()
    return base64.b64encode(digest).decode()


def test_the_documented_vector() -> None:
    """The published key, task and timestamp give the published signature."""
    assert GOOD.encode() == signature(KEY, TASK, TIME)
    assert is_signed([KEY], headers([TIME], [GOOD]), TASK)


def test_c05_an_old_or_future_timestamp_is_no_reason_to_refuse() -> None:
    """MidAPI may not sign its retries anew: the signature counts, not its age."""
    for time in ("0", "1", "999999999999"):
        assert is_signed([KEY], headers([time], [signed(time)]), TASK)


def test_rotation_takes_the_old_and_the_new_key() -> None:
    """One of several keys is enough, wherever it stands; none of them is not."""
    for keys in ([b"new", KEY], [KEY, b"new"], [b"a", KEY, b"b"]):
        assert is_signed(keys, headers([TIME], [GOOD]), TASK)
    assert not is_signed([b"new", b"newer"], headers([TIME], [GOOD]), TASK)
    assert not is_signed([], headers([TIME], [GOOD]), TASK)


def test_c23_a_signature_is_for_one_task_and_time() -> None:
    """The signature of one task does not sign another, nor another moment."""
    assert not is_signed([KEY], headers([TIME], [GOOD]), TASK[:-1] + "8")
    assert not is_signed([KEY], headers(["1760557533"], [GOOD]), TASK)


@pytest.mark.parametrize(
    ("times", "signatures"),
    [
        ([], []),
        ([TIME], []),
        ([], [GOOD]),
        ([TIME, TIME], [GOOD]),
        ([TIME], [GOOD, GOOD]),
        ([TIME, "0"], [GOOD, "x"]),
    ],
)
def test_c05_headers_stand_there_once(times: Sequence[str], signatures: Sequence[str]) -> None:
    """A missing or doubled header is no signature, also where one of the two would fit."""
    assert not is_signed([KEY], headers(times, signatures), TASK)


def test_no_headers_are_no_signature() -> None:
    """Also when other headers are there."""
    assert not is_signed([KEY], {}, TASK)
    assert not is_signed([KEY], {"content-type": ["application/json"]}, TASK)


@pytest.mark.parametrize(
    "time",
    [
        "",
        " ",
        "NaN",
        "-1",
        "+1",
        "1.5",
        "1e9",
        " 1_0٣ ",
        "١٧٦٠٥٥٧٥٣٢",
        "²",
        "1" * 13,
        f"{TIME}\n",
        f" {TIME}",
        f"{TIME} ",
        "0x10",
        "\ud800",
    ],
)
def test_c05_a_timestamp_is_ascii_digits(time: str) -> None:
    """Whatever `int` or `float` would take besides is refused, however well it is signed."""
    digest = hmac.new(KEY, f"{TASK}.{time}".encode(errors="surrogatepass"), hashlib.sha256).digest()
    given_signature = base64.b64encode(digest).decode()
    assert not is_signed([KEY], headers([time], [given_signature]), TASK)


@pytest.mark.parametrize(
    "given_signature",
    [
        "",
        "=",
        GOOD[:-1],
        GOOD + "=",
        GOOD + "\n",
        f" {GOOD}",
        GOOD.replace("+", "-"),
        "!" + GOOD,
        GOOD[:10] + "*" + GOOD[10:],
        GOOD.lower(),
        "é" * 44,
        "\ud800",
        "\0",
        GOOD * 1000,
    ],
)
def test_c04_junk_is_no_signature(given_signature: str) -> None:
    """Base64 that a lax decoder would take, and text that `compare_digest` would choke on."""
    assert not is_signed([KEY], headers([TIME], [given_signature]), TASK)


ANY_TEXT = st.text(st.characters(exclude_categories=()))


@given(
    st.lists(ANY_TEXT | st.just(TIME), max_size=3),
    st.lists(ANY_TEXT | st.just(GOOD), max_size=3),
    st.text() | st.just(TASK),
)
def test_there_is_one_outcome_whatever_the_headers_hold(
    times: list[str], signatures: list[str], task: str
) -> None:
    """True for the one right pair, False for all else; never an error."""
    expected = times == [TIME] and signatures == [GOOD] and task == TASK
    assert expected is is_signed([KEY], headers(times, signatures), task)
