"""For any input: a documented status, no exception, no secret in a log, no hang.

Short here; `nox -s fuzz` runs the same with as many examples as MIDAPI_TEST_FUZZ says.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import os
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from midapi_async import ProtocolError
from midapi_async._wire.protocol import read_callback
from midapi_async._wire.tokens import new_token
from midapi_async.callbacks.signature import is_signed, signature
from midapi_async.testing import VirtualLoop
from tests.callbacks.raw import DOCUMENTED, GOOD, TASK, Answer, Desk, Sender, a_desk, a_sender, ask
from tests.support.secrets import WEBHOOK_KEY

EXAMPLES = int(os.environ.get("MIDAPI_TEST_FUZZ", "0"))
STAMP = "1760557532"
SIGNATURE = signature(WEBHOOK_KEY.encode(), TASK, STAMP).decode()


def examples(few: int, share: float = 1.0) -> settings:
    """So many examples, or a share of what was asked for."""
    return settings(
        max_examples=int(EXAMPLES * share) or few,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example],
    )


# ─── the core ────────────────────────────────────────────────────────────────────────────────────

names = st.sampled_from(
    ["X-Webhook-Timestamp", "x-webhook-signature", "X-WEBHOOK-SIGNATURE", "Content-Encoding", "é"]
) | st.text(max_size=20)
values = st.sampled_from([STAMP, SIGNATURE, "identity", "gzip", "", "\ud800", "é"]) | st.text(
    max_size=40
)
headers = st.lists(st.tuples(names, values), max_size=8) | st.dictionaries(names, values)
good_headers = st.just([("X-Webhook-Timestamp", STAMP), ("X-Webhook-Signature", SIGNATURE)])
json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=9) | st.just(TASK),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["data", "taskId", "task_id", "code", "resultUrls"])
            | st.text(max_size=9),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@st.composite
def mutated(draw: st.DrawFn, whole: bytes, words: list[bytes]) -> bytes:
    """These bytes after a few accidents."""
    for _ in range(draw(st.integers(0, 4))):
        begin = draw(st.integers(0, len(whole)))
        end = draw(st.integers(begin, min(len(whole), begin + 20)))
        patch = draw(st.sampled_from([b"", *words]) | st.binary(max_size=6))
        whole = whole[:begin] + patch + whole[end:]
    return whole


WORDS = [b"{", b"[" * 3000, b'"', b"null", b"NaN", b"\\ud800", b"\xff", TASK.encode(), b'"taskId":']
bodies = (
    mutated(GOOD, WORDS)
    | st.binary(max_size=60)
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.just(b"x" * 70_000)
)


@pytest.mark.fault("C4")
@pytest.mark.fault("C12")
def test_fuzz_handle_always_returns_a_documented_status() -> None:
    """200 and taken, or another one and not; with another token never."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        desk = Desk(webhook_key=WEBHOOK_KEY)
        desk.receiver._inboxes[desk] = runner.get_loop()  # no server is needed here

        @examples(300)
        @given(
            token=st.just(desk.token) | st.text(max_size=200) | st.builds(new_token),
            headers=good_headers | headers,
            body=bodies,
            is_read=st.booleans(),
        )
        def check(
            token: str, headers: list[tuple[str, str]], body: bytes, *, is_read: bool
        ) -> None:
            async def read() -> bytes:
                return body

            before = len(desk.taken)
            status = runner.run(desk.handle(token, headers, read if is_read else body))
            assert status in DOCUMENTED
            assert (status == 200) == (len(desk.taken) == before + 1)
            assert status == 404 or token == desk.token

        check()


@examples(300)
@given(body=bodies)
@pytest.mark.fault("C12")
def test_fuzz_any_body_is_a_callback_or_a_protocol_error(body: bytes) -> None:
    """Then it names a task by an id that may stand anywhere."""
    try:
        callback = read_callback(body)
    except ProtocolError:
        return
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,128}", callback.task_id)


@examples(300)
@given(
    keys=st.lists(st.just(WEBHOOK_KEY.encode()) | st.binary(max_size=9), max_size=3),
    stamps=st.lists(st.just(STAMP) | values, max_size=2),
    signatures=st.lists(st.just(SIGNATURE) | values, max_size=2),
    task_id=st.just(TASK) | st.text(max_size=40),
)
@pytest.mark.fault("C4")
@pytest.mark.fault("C5")
def test_fuzz_only_a_right_signature_is_accepted(
    keys: list[bytes], stamps: list[str], signatures: list[str], task_id: str
) -> None:
    """One timestamp of digits, one signature, and it is what the documentation says."""
    given_headers = {"x-webhook-timestamp": stamps, "x-webhook-signature": signatures}
    expected = False
    if len(stamps) == 1 == len(signatures) and re.fullmatch("[0-9]{1,12}", stamps[0]):
        text = f"{task_id}.{stamps[0]}".encode(errors="surrogatepass")
        made = [base64.b64encode(hmac.digest(key, text, hashlib.sha256)).decode() for key in keys]
        expected = signatures[0] in made
    assert expected is is_signed(keys, given_headers, task_id)


# ─── the server ──────────────────────────────────────────────────────────────────────────────────

NASTY = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b"\0",
    b":",
    b" ",
    b"Content-Length: 5\r\n",
    b"Content-Length: 99999999\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"Content-Encoding: gzip\r\n",
    b"Expect: 100-continue\r\n",
    b"Connection: Upgrade\r\nUpgrade: h2c\r\n",
    b"Connection: close\r\n",
    b"HTTP/1.0",
    b"GET / HTTP/1.1\r\n",
    b"CONNECT x:1 HTTP/1.1\r\n",
    b"0\r\n\r\n",
    b"5\r\nhello\r\n",
    b"X: y\r\n" * 70,
    b"z" * 5000,
]


def chunked(desk: Desk) -> bytes:
    """A callback as a proxy may send it."""
    line = f"POST /{desk.token} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    return line.encode() + b"%x\r\n%b\r\n0\r\n\r\n" % (len(GOOD), GOOD)


async def answers_of(sender: Sender) -> list[Answer]:
    """All that it is answered until it is cut."""
    answers = []
    try:
        while True:
            answers.append(await sender.answer())
    except asyncio.IncompleteReadError as error:
        if error.partial:
            pytest.fail("an answer was cut")
    except ConnectionError:
        pass  # it was cut while bytes of its own were under way
    return answers


async def play(desk: Desk, parts: list[bytes], *, is_ended: bool) -> None:
    """Say this to the server, part by part, and hold it to its word."""
    before, begun = len(desk.taken), asyncio.get_running_loop().time()
    async with a_sender(desk.port) as sender:
        for part in parts:
            sender.say(part)
            await asyncio.sleep(0.01)
        if is_ended:
            sender.end()
        answers = await answers_of(sender)
    statuses = [answer.status for answer in answers if answer.status != 100]
    assert {*statuses} <= DOCUMENTED
    assert all(status == 200 for status in statuses[:-1]), "something followed a refusal"
    taken = len(desk.taken) - before
    assert statuses.count(200) <= taken <= b"".join(parts).count(desk.token.encode())
    assert asyncio.get_running_loop().time() - begun < 60
    assert "0 receiving, 0 idle, 0 busy" in repr(desk.receiver._server)


@pytest.mark.fault("C13")
def test_fuzz_any_bytes_over_a_socket() -> None:
    """Only documented answers, nothing after a refusal, all cut in time; and the server lives."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        opened = a_desk()
        desk = runner.run(opened.__aenter__())

        @examples(150, share=0.1)
        @given(data=st.data(), is_ended=st.booleans())
        def check(data: st.DataObject, *, is_ended: bool) -> None:
            request = st.sampled_from([desk.post(), chunked(desk)])
            whole = b"".join(data.draw(st.lists(request, min_size=1, max_size=3)))
            sent = data.draw(mutated(whole, NASTY))
            cuts = sorted(data.draw(st.sets(st.integers(0, len(sent)), max_size=3)))
            edges = zip([0, *cuts], [*cuts, len(sent)], strict=True)
            runner.run(play(desk, [sent[begin:end] for begin, end in edges], is_ended=is_ended))

        check()
        assert runner.run(ask(desk.port, desk.post())).status == 200
        runner.run(opened.__aexit__(None, None, None))
