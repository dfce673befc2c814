"""MidAPI's signature of a callback: one outcome for any headers."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from midapi_async import CallbackReceiver, Intent, InvalidRequestError, sign_callback
from midapi_async._wire.protocol import Callback
from midapi_async.callbacks import Headers
from midapi_async.callbacks.signature import (
    SIGNATURE_HEADER,
    TIMESTAMP_HEADER,
    is_signed,
    signature,
)
from midapi_async.testing import VirtualLoop
from tests.support.secrets import WEBHOOK_KEY, assert_none_in, found_in, known

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


@pytest.mark.fault("C5")
def test_old_and_future_timestamps_are_accepted() -> None:
    """MidAPI may not sign its retries again: the signature counts, not its age."""
    for moment in ("0", "1", "999999999999"):
        assert is_signed([KEY], headers([moment], [signed(moment)]), TASK)


def test_rotation_takes_the_old_and_the_new_key() -> None:
    """One of several keys is enough, wherever it stands; none of them is not."""
    for keys in ([b"new", KEY], [KEY, b"new"], [b"a", KEY, b"b"]):
        assert is_signed(keys, headers([TIME], [GOOD]), TASK)
    assert not is_signed([b"new", b"newer"], headers([TIME], [GOOD]), TASK)
    assert not is_signed([], headers([TIME], [GOOD]), TASK)


@pytest.mark.fault("C4")
def test_a_signature_is_for_one_task_and_time() -> None:
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
@pytest.mark.fault("C5")
def test_missing_and_doubled_headers_are_refused(
    times: Sequence[str], signatures: Sequence[str]
) -> None:
    """A missing or doubled header is no signature, also where one of the two would fit."""
    assert not is_signed([KEY], headers(times, signatures), TASK)


def test_without_headers_there_is_no_signature() -> None:
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
@pytest.mark.fault("C5")
def test_only_ascii_digits_are_a_timestamp(time: str) -> None:
    """Other texts that `int` or `float` would accept are refused, even if they are signed."""
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
@pytest.mark.fault("C4")
def test_malformed_signatures_are_refused(given_signature: str) -> None:
    """Base64 that a lax decoder would take, and text that `compare_digest` would choke on."""
    assert not is_signed([KEY], headers([TIME], [given_signature]), TASK)


ANY_TEXT = st.text(st.characters(exclude_categories=()))


@given(
    st.lists(ANY_TEXT | st.just(TIME), max_size=3),
    st.lists(ANY_TEXT | st.just(GOOD), max_size=3),
    st.text() | st.just(TASK),
)
def test_any_headers_are_signed_or_not(times: list[str], signatures: list[str], task: str) -> None:
    """True for the one right pair, False for all else; never an error."""
    expected = times == [TIME] and signatures == [GOOD] and task == TASK
    assert expected is is_signed([KEY], headers(times, signatures), task)


# ─── sign_callback ───────────────────────────────────────────────────────────────────────────────


def test_sign_callback_makes_the_documented_headers() -> None:
    """The published vector, under the names that MidAPI sends."""
    signed_headers = {"X-Webhook-Timestamp": TIME, "X-Webhook-Signature": GOOD}
    assert signed_headers == sign_callback(WEBHOOK_KEY, TASK, int(TIME))


def test_without_a_timestamp_it_signs_now() -> None:
    """In whole seconds of the wall clock."""
    before = int(time.time())
    moment = sign_callback(WEBHOOK_KEY, TASK)["X-Webhook-Timestamp"]
    assert before <= int(moment) <= time.time()
    assert signed(moment) == sign_callback(WEBHOOK_KEY, TASK)["X-Webhook-Signature"] or (
        int(time.time()) > int(moment)
    )


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("", TASK), "webhook_key"),
        ((WEBHOOK_KEY.encode(), TASK), "webhook_key"),
        ((WEBHOOK_KEY, ""), "task_id"),
        ((WEBHOOK_KEY, None), "task_id"),
        ((WEBHOOK_KEY, TASK, -1), "timestamp"),
        ((WEBHOOK_KEY, TASK, 10**12), "timestamp"),
        ((WEBHOOK_KEY, TASK, 10**5000), "timestamp"),
        ((WEBHOOK_KEY, TASK, 1.5), "timestamp"),
        ((WEBHOOK_KEY, TASK, TIME), "timestamp"),
        ((WEBHOOK_KEY, TASK, True), "timestamp"),
        (("key\ud800", TASK), "webhook_key"),
    ],
)
def test_wrong_arguments_of_sign_callback_are_named(
    arguments: tuple[str, str, int], named: str
) -> None:
    """And does not show the key."""
    with pytest.raises(InvalidRequestError) as caught:
        sign_callback(*arguments)
    assert list(caught.value.problems) == [named]
    assert_none_in(caught.value)


# ─── in a receiver ───────────────────────────────────────────────────────────────────────────────


class OneIntent:
    """An inbox that knows every token, and counts."""

    def __init__(self) -> None:
        self.taken = 0

    async def find(self, token_hash: str) -> Intent | None:
        return Intent(
            intent_id="",
            scope="",
            request=None,
            fingerprint="",
            token_hash=token_hash,
            created_at=0,
        )

    def task_ids(self, row: Intent) -> Collection[str]:
        return [row.task_id] if row.task_id else []

    async def take(self, row: Intent, callback: Callback | None) -> int:
        self.taken += 1
        return 200


def handled(*all_headers: Headers, keys: Sequence[str] = (WEBHOOK_KEY,)) -> list[int]:
    """What a receiver answers to callbacks with such headers."""

    async def handle() -> list[int]:
        inbox = OneIntent()
        receiver = CallbackReceiver("https://me.example", webhook_key=keys)
        await receiver.attach(inbox)
        body = json.dumps({"code": 200, "data": {"taskId": TASK, "resultUrls": []}}).encode()
        statuses = [await receiver.handle("token", each, body) for each in all_headers]
        assert statuses.count(200) == inbox.taken
        await receiver.detach(inbox)
        return statuses

    return VirtualLoop.run(handle())


NAMES = st.sampled_from(["X-Webhook-Timestamp", "X-Webhook-Signature"]).flatmap(
    lambda name: st.sampled_from([name, name.lower(), name.upper(), f" {name}", name[:-1]])
)
VALUES = st.sampled_from([TIME, GOOD, "0", f"{TIME} ", GOOD[:-1], signed("0"), GOOD * 2000])
GOOD_PAIRS = [("x-webhook-TIMESTAMP", TIME), ("X-WEBHOOK-signature", GOOD)]


@given(st.lists(st.tuples(NAMES | ANY_TEXT, VALUES | ANY_TEXT), max_size=5), st.booleans())
@example(GOOD_PAIRS, False)
@example([*GOOD_PAIRS, GOOD_PAIRS[0]], False)
@example([("X-Webhook-Timestamp", "\ud800"), ("X-Webhook-Signature", "\udcff")], True)
@example([("\ud800", "\ud800"), ("X-Webhook-Signature", "=" * 1_000_000)], True)
@pytest.mark.fault("C4")
@pytest.mark.fault("C5")
def test_any_list_of_headers_is_200_or_401(pairs: list[tuple[str, str]], complete: bool) -> None:
    """200 for exactly one good timestamp with its one signature, else 401; never an error."""
    pairs = [*pairs, *GOOD_PAIRS] if complete else pairs
    pairs = [(name, value) for name, value in pairs if name.lower() != "content-encoding"]
    named = {
        wanted: [value for name, value in pairs if name.lower() == wanted]
        for wanted in (TIMESTAMP_HEADER, SIGNATURE_HEADER)
    }
    is_good = named in (headers([TIME], [GOOD]), headers(["0"], [signed("0")]))
    assert handled(pairs) == [200 if is_good else 401]


@pytest.mark.fault("C4")
def test_a_missing_and_a_wrong_signature_are_each_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Is the key set at MidAPI? Was it changed? One line each, and never what was sent."""
    wrong = sign_callback(known("another-key-of-webhooks"), TASK)
    assert handled({}, wrong, {}, wrong, GOOD_PAIRS[:1], GOOD_PAIRS[1:]) == [401] * 6
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2, messages
    assert "is missing. webhook_key is set here; is the key set at MidAPI too?" in messages[0]
    assert "is wrong. Was the key changed at MidAPI?" in messages[1]
    assert wrong["X-Webhook-Signature"] not in caplog.text
    assert not found_in(caplog.text)


def test_rotation_in_a_receiver() -> None:
    """The old and the new key are taken while one replaces the other; a third is not."""
    new = known("the-new-key-of-webhooks")
    given_headers = [sign_callback(key, TASK) for key in (WEBHOOK_KEY, new, "a-third")]
    assert handled(*given_headers, keys=(WEBHOOK_KEY, new)) == [200, 200, 401]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("is_file", [True, False])
def test_several_keys_in_the_environment_one_per_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ending: str, is_file: bool
) -> None:
    """`CallbackReceiver.from_env`: in the variable, or in the file that the other one names."""
    new = known("the-new-key-of-webhooks")
    text = f"{WEBHOOK_KEY}{ending}{new}{ending}"
    monkeypatch.setenv("MIDAPI_PUBLIC_URL", "https://me.example")
    if is_file:
        (tmp_path / "keys").write_bytes(text.encode())
        monkeypatch.setenv("MIDAPI_WEBHOOK_KEY_FILE", str(tmp_path / "keys"))
    else:
        monkeypatch.setenv("MIDAPI_WEBHOOK_KEY", text)
    receiver = CallbackReceiver.from_env()
    assert receiver is not None
    assert receiver._keys == (WEBHOOK_KEY.encode(), new.encode())


@pytest.mark.parametrize("text", [f"{WEBHOOK_KEY}\n\nnew", "a\x01b", "a\udcff"])
def test_malformed_keys_in_the_environment_are_an_error(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """At the start, and not as 401 to each callback."""
    monkeypatch.setenv("MIDAPI_PUBLIC_URL", "https://me.example")
    monkeypatch.setenv("MIDAPI_WEBHOOK_KEY", text)
    with pytest.raises(InvalidRequestError) as caught:
        CallbackReceiver.from_env()
    assert list(caught.value.problems) == ["webhook_key"]
    assert_none_in(caught.value)
