"""Rows S of the fault catalogue: every way in which a POST can fail, over real sockets."""

import asyncio
import copy
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from midapi_async import (
    APIError,
    AuthenticationError,
    BadRequestError,
    ClientClosed,
    FeatureDisabledError,
    GenerationFailedError,
    InsufficientCreditsError,
    InvalidRequestError,
    JournalError,
    KeyConflict,
    MaintenanceError,
    MemoryJournal,
    MidAPIClient,
    MidAPIError,
    NotFoundError,
    RateLimit,
    RateLimitError,
    RetryPolicy,
    SpendingCapError,
    State,
    SubmissionUnknown,
    TextToImage,
    Timeouts,
    TransportError,
    UnprocessableError,
    Vary,
    WaitTimeout,
)
from midapi_async._wire.protocol import Answer, Call
from midapi_async.journal import Busy, Claim, Intent
from midapi_async.journal.sqlite import SQLiteJournal
from tests.cli.proxies import Proxy
from tests.support.leaks import LoopWatch
from tests.support.scripted import (
    ScriptedServer,
    Step,
    close,
    cut,
    delay,
    drip,
    garbage,
    hang,
    interim,
    lose_answer,
    raw,
    reply,
    reset,
    then_close,
)
from tests.support.secrets import assert_none_in
from tests.support.stepper import cancel_at_each_step
from tests.world import (
    TASK,
    accepted,
    assert_nothing_lost,
    client_of,
    looked,
    looks,
    mid,
    ok,
    refused,
    selling,
    submits,
)

GOOD = b'{"code":200,"msg":"success","data":{"taskId":"' + TASK.encode() + b'"}}'
HTML = "<html><body>please log in</body></html>"


async def rows_of(server: ScriptedServer, journal: MemoryJournal) -> list[Intent]:
    return await journal.rows(f"{server.url} default")


P7 = pytest.mark.fault("P7")
S1 = pytest.mark.fault("S1")
S3 = pytest.mark.fault("S3")
S8 = pytest.mark.fault("S8")
S9 = pytest.mark.fault("S9")
S10 = pytest.mark.fault("S10")
S11 = pytest.mark.fault("S11")
S12 = pytest.mark.fault("S12")
S22 = pytest.mark.fault("S22")

# Answers that leave it open whether a POST was accepted.
UNKNOWN = [
    pytest.param(lose_answer("close"), id="closed_without_an_answer", marks=S1),
    pytest.param(lose_answer("reset"), id="reset_after_the_body", marks=S1),
    pytest.param(lose_answer("hang"), id="no_answer_until_the_timeout", marks=S1),
    pytest.param(reset("headers"), id="reset_after_the_headers", marks=S3),
    pytest.param(reset("accept"), id="reset_on_accept", marks=S3),
    pytest.param(close("accept"), id="closed_on_accept", marks=S3),
    pytest.param(
        reply(json={"code": 777, "msg": "?", "data": None}), id="code_in_no_table", marks=S8
    ),
    pytest.param(reply(500, body="oops"), id="http_500", marks=S9),
    pytest.param(reply(502, body=HTML), id="http_502", marks=S9),
    pytest.param(reply(503, body=HTML), id="http_503", marks=S9),
    pytest.param(reply(504), id="http_504", marks=S9),
    pytest.param(reply(408), id="http_408", marks=S9),
    pytest.param(
        reply(json={"code": 500, "msg": "server error", "data": None}), id="code_500", marks=S9
    ),
    pytest.param(ok({}), id="no_task_id", marks=S10),
    pytest.param(ok(None), id="data_null", marks=S10),
    pytest.param(ok({"taskId": ""}), id="empty", marks=S10),
    pytest.param(ok({"taskId": 5}), id="a_number", marks=S10),
    pytest.param(ok({"taskId": "x" * 10_000}), id="10_kb", marks=S10),
    pytest.param(ok({"taskId": "../x"}), id="a_path", marks=S10),
    pytest.param(ok({"taskId": "a\nb"}), id="a_newline", marks=S10),
    pytest.param(reply(body=HTML), id="html", marks=S11),
    pytest.param(reply(), id="empty", marks=S11),
    pytest.param(cut(reply(body=GOOD), body=60), id="cut_before_the_id_ends", marks=S11),
    pytest.param(reply(body="[" * 100_000), id="deep", marks=S11),
    pytest.param(
        reply(body='{"code":200,"code":200,"data":{"taskId":"a"}}'), id="double_key", marks=S11
    ),
    pytest.param(reply(body='{"code":NaN,"data":{"taskId":"a"}}'), id="nan", marks=S11),
    pytest.param(
        reply(body='{"code":200,"data":{"taskId":"a"}}'.encode("utf-16")), id="utf_16", marks=S11
    ),
    pytest.param(
        reply(body=b'{"code":200,"data":"' + b"x" * (1 << 21) + b'"}'), id="too_large", marks=S11
    ),
    pytest.param(garbage(), id="garbage_status_line", marks=S11),
    pytest.param(raw(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000), id="endless_headers", marks=S11),
    pytest.param(drip(reply(body=b" " * 1000 + GOOD)), id="one_byte_a_second", marks=S12),
    pytest.param(delay(accepted(), 500), id="the_answer_is_late", marks=S12),
    pytest.param(reply(400, body=HTML, accepted=True), id="http_400_page", marks=S22),
    pytest.param(reply(403, body=HTML, accepted=True), id="http_403_page", marks=S22),
    pytest.param(reply(404, body=HTML, accepted=True), id="http_404_page", marks=S22),
    pytest.param(reply(413, body=HTML, accepted=True), id="http_413_page", marks=S22),
    pytest.param(reply(451, body=HTML, accepted=True), id="http_451_page", marks=S22),
    pytest.param(
        reply(404, json={"code": 200, "data": None}, accepted=True),
        id="http_404_and_code_200",
        marks=S22,
    ),
    pytest.param(
        reply(422, json={"code": 500, "msg": "no"}, accepted=True),
        id="http_422_and_code_500",
        marks=S22,
    ),
    pytest.param(
        reply(403, json={"error": "forbidden"}, accepted=True), id="json_of_a_proxy", marks=S22
    ),
    pytest.param(
        cut(reply(400, json={"code": 400, "msg": "no"}, accepted=True), body=3),
        id="cut_400",
        marks=S22,
    ),
    pytest.param(reply(307, headers={"Location": "/elsewhere"}), id="redirect_307", marks=P7),
    pytest.param(reply(308, headers={"Location": "/elsewhere"}), id="redirect_308", marks=P7),
]


@pytest.mark.parametrize("answer", UNKNOWN)
async def test_what_proves_nothing_is_unknown(
    answer: Step, caplog: pytest.LogCaptureFixture
) -> None:
    """Where nobody can know, it says so, is in the journal as UNKNOWN, and is not sent again."""
    journal = MemoryJournal()
    async with (
        ScriptedServer([answer]) as server,
        client_of(server, journal=journal) as client,
    ):
        with pytest.raises(SubmissionUnknown) as caught:
            await client.generate("a red fox", key="k")
        assert not caught.value.can_settle
        assert caught.value.key == "k"
        assert caught.value.intent_id in str(caught.value)
        assert_none_in(caught.value, *caught.value.args)
        assert [row.state for row in await rows_of(server, journal)] == [State.UNKNOWN]
        assert [row.intent_id for row in await client.intents.unknown()] == [caught.value.intent_id]
        await assert_nothing_lost(server, journal)
        with pytest.raises(SubmissionUnknown):
            await client.generate("a red fox", key="k")
        assert len(submits(server)) <= 1
    assert "../x" not in caplog.text
    assert "a\nb" not in caplog.text


REFUSED: dict[str, tuple[Step, type[APIError]]] = {
    "400": (refused(400), BadRequestError),
    "401": (refused(401), AuthenticationError),
    "402": (refused(402, "Credits insufficient : top up"), InsufficientCreditsError),
    "402_as_500": (refused(500, "Credits insufficient : Your current"), InsufficientCreditsError),
    "404": (refused(404), NotFoundError),
    "422": (refused(422), UnprocessableError),
    "433": (refused(433), SpendingCapError),
    "501": (refused(501), GenerationFailedError),
    "505": (refused(505), FeatureDisabledError),
    "http_401": (refused(401, status=401), AuthenticationError),
    "http_400": (refused(400, status=400), BadRequestError),
    "http_401_page": (reply(401, body=HTML), AuthenticationError),
    "http_407_page": (reply(407, body=HTML), APIError),
    "http_429_page": (reply(429, body=HTML), RateLimitError),
    "http_403_challenge": (reply(403, body=HTML, headers={"CF-Mitigated": "challenge"}), APIError),
    "http_500_and_code_402": (refused(402, status=500), InsufficientCreditsError),
}


@pytest.mark.fault("S8")
@pytest.mark.fault("S22")
@pytest.mark.parametrize("code", REFUSED)
async def test_a_refusal_is_its_own_error_and_never_repeated(code: str) -> None:
    """A proven refusal raises its class at once, and leaves the key free."""
    answer, kind = REFUSED[code]
    journal = MemoryJournal()
    async with (
        ScriptedServer([answer], then=mid(accepted(), other=ok(100))) as server,
        client_of(server, journal=journal) as client,
    ):
        with pytest.raises(kind) as caught:
            await client.generate("a red fox", key="k")
        assert_none_in(caught.value)
        assert len(submits(server)) == 1
        assert [row.state for row in await rows_of(server, journal)] == [State.REFUSED]
        assert (await client.generate("a red fox", key="k")).task_id == TASK


KEPT: dict[str, Step] = {
    "cut_after_the_id": cut(reply(body=GOOD), body=len(GOOD) - 2),
    "reset_after_the_id": cut(reply(body=GOOD), body=len(GOOD) - 1, ending="reset"),
    "hanging_after_the_id": cut(reply(body=GOOD), body=len(GOOD) - 1, ending="hang"),
    "code_200_in_http_500": reply(500, body=GOOD),
    "behind_a_103": interim(accepted()),
    "data_is_a_string": ok(f'{{"taskId":"{TASK}"}}'),
    "code_is_a_string": reply(json={"code": "200", "msg": None, "data": {"taskId": TASK}}),
}


@pytest.mark.fault("S1")
@pytest.mark.parametrize("answer", KEPT)
async def test_a_complete_task_id_is_the_answer(answer: str) -> None:
    """What was paid for is not lost to what came behind it."""
    async with ScriptedServer([KEPT[answer]]) as server, client_of(server) as client:
        assert (await client.generate("a red fox")).task_id == TASK


@pytest.mark.fault("S2")
async def test_refused_connections_are_tried_again() -> None:
    """Nobody listens: proof that nothing was sent, so it is sent again inside the deadline."""
    async with ScriptedServer() as gone:
        url = f"https://0.0.0.0:{gone.port}"  # leads to this machine, and does not look so
    journal = MemoryJournal()
    async with client_of(url, journal=journal, retry=RetryPolicy(give_up_after=20)) as client:
        begun = asyncio.get_running_loop().time()
        with pytest.raises(TransportError) as caught:
            await client.generate("a red fox")
        took = asyncio.get_running_loop().time() - begun
        assert not caught.value.sent
        assert 5 < took <= 20
        assert 4 <= client.stats().submits <= 6
        assert [row.state for row in await journal.rows(f"{url} default")] == [State.REFUSED]


@pytest.mark.fault("S2")
async def test_a_failing_name_is_not_sent() -> None:
    """A host name that does not resolve: nothing was sent."""
    options = {"retry": RetryPolicy(give_up_after=0), "allow_http": True}
    with pytest.warns(UserWarning, match="unencrypted"):
        client = client_of("http://nowhere.invalid", **options)
    async with client:
        with pytest.raises(TransportError) as caught:
            await client.generate("a red fox")
        assert not caught.value.sent


@pytest.mark.fault("S2")
async def test_a_tls_handshake_that_hangs_is_not_sent() -> None:
    """The payload alone tells: TLS hung, nothing of the POST was written."""
    async with ScriptedServer(then=hang("accept")) as server:
        options = {"timeouts": Timeouts(connect=3), "retry": RetryPolicy(give_up_after=10)}
        async with client_of(server.url.replace("http:", "https:"), **options) as client:
            with pytest.raises(TransportError) as caught:
                await client.generate("a red fox")
            assert not caught.value.sent
            assert client.stats().submits >= 2
        assert not server.accepted


@pytest.mark.fault("S2")
async def test_a_wrong_certificate_is_not_tried_again(loop_watch: LoopWatch) -> None:
    """The error says what is wrong with it, and how to trust an authority of one's own."""
    async with Proxy(certificate="self_signed.pem") as server:
        async with client_of(server.url("", scheme="https")) as client:
            begun = asyncio.get_running_loop().time()
            with pytest.raises(TransportError, match=r"self.signed .*SSL_CERT_FILE") as caught:
                await client.generate("a red fox")
            assert (caught.value.sent, caught.value.permanent) == (False, True)
            assert client.stats().submits == 1
            assert asyncio.get_running_loop().time() - begun < 1
    loop_watch.reports.clear()  # asyncio's own, of the server that was hung up on


@pytest.mark.fault("S2")
async def test_https_at_a_port_that_speaks_http() -> None:
    """TLS fails; the error says so."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        options = {"retry": RetryPolicy(give_up_after=0)}
        async with client_of(f"https://127.0.0.1:{port}", **options) as client:
            with pytest.raises(TransportError, match="TLS failed") as caught:
                await client.generate("a red fox")
            assert not caught.value.sent


@pytest.mark.fault("S2")
async def test_a_proxy_that_refuses_is_not_sent() -> None:
    """A proxy's CONNECT is refused: nothing of the POST was written."""
    async with ScriptedServer(then=reply(403)) as proxy:
        options = {"proxy": proxy.url, "retry": RetryPolicy(give_up_after=0)}
        async with client_of("https://api.example", **options) as client:
            with pytest.raises(TransportError) as caught:
                await client.generate("a red fox")
            assert not caught.value.sent
        assert {request.method for request in proxy.requests} == {"CONNECT"}


@pytest.mark.fault("S4")
async def test_stale_keepalive_is_never_a_second_post() -> None:
    """A pooled connection that the server closed: unknown at worst; idle for 2 s, never used."""
    async with (
        ScriptedServer([then_close(accepted("first")), accepted("second")]) as server,
        client_of(server) as client,
    ):
        assert (await client.generate("a red fox")).task_id == "first"
        await asyncio.sleep(2.5)
        assert (await client.generate("a blue whale")).task_id == "second"
        assert server.connections == 2


@pytest.mark.fault("S5")
@pytest.mark.fault("S7")
@pytest.mark.parametrize(
    ("header", "least"), [("7", 7), ("0", 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0)]
)
@pytest.mark.parametrize("status", [200, 429])
async def test_retry_after_is_a_minimum(header: str, least: float, status: int) -> None:
    """A Retry-After is waited for, with jitter upwards only; then it is sent again."""
    async with (
        ScriptedServer([refused(429, status=status, Retry_After=header), accepted()]) as server,
        client_of(server) as client,
    ):
        begun = asyncio.get_running_loop().time()
        handle = await client.generate("a red fox")
        took = asyncio.get_running_loop().time() - begun
        assert handle.task_id == TASK
        assert least <= took <= least + 2
        assert len(server.accepted) == 1


async def test_a_retry_and_an_acceptance_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """What failed, when it is sent again, how much time is left; then the task."""
    caplog.set_level(logging.INFO, "midapi_async.submission")
    async with (
        ScriptedServer([refused(455, "down"), accepted()]) as server,
        client_of(server) as client,
    ):
        handle = await client.generate("a red fox", key="k")
        retry, accepted_ = [each for each in caplog.messages if each.startswith("Submission")]
        named = f"Submission {handle.intent_id} (key 'k')"
        assert re.fullmatch(
            re.escape(named) + r" is sent again in [01]\.\d s, with 59 s left: MidAPI .*455.*",
            retry,
        )
        assert accepted_ == f"{named} was accepted as task {TASK}"


@pytest.mark.fault("S22")
async def test_a_proxys_429_is_sent_again_if_it_says_when() -> None:
    """With a Retry-After it is a rate limit, whoever wrote it."""
    page = reply(429, body=HTML, headers={"Retry-After": "7"})
    async with ScriptedServer([page, accepted()]) as server, client_of(server) as client:
        begun = asyncio.get_running_loop().time()
        assert (await client.generate("a red fox")).task_id == TASK
        assert asyncio.get_running_loop().time() - begun >= 7
        assert len(server.accepted) == 1


@pytest.mark.fault("S5")
async def test_a_long_retry_after_is_the_callers() -> None:
    """Above the cap nobody waits: the caller is told how long, and the gate rests."""
    async with (
        ScriptedServer([refused(429, status=429, Retry_After="1000000000")]) as server,
        client_of(server) as client,
    ):
        with pytest.raises(RateLimitError) as caught:
            await client.generate("a red fox")
        assert caught.value.retry_after == 1e9
        assert len(server.requests) == 1


@pytest.mark.fault("S5")
@pytest.mark.fault("S6")
@pytest.mark.parametrize("header", ["-5", "soon", "1e3", "", "٣"])
async def test_garbage_is_ignored(header: str) -> None:
    """Without a usable Retry-After the pauses grow by themselves."""
    late = refused(429, status=429, **({"Retry_After": header} if header.isascii() else {}))
    async with (
        ScriptedServer([late, late, late, accepted()]) as server,
        client_of(server) as client,
    ):
        begun = asyncio.get_running_loop().time()
        await client.generate("a red fox")
        took = asyncio.get_running_loop().time() - begun
        assert 3.5 <= took <= 9


@pytest.mark.fault("S6")
async def test_429_for_ever_ends() -> None:
    """The budget counts the pauses of its own 429s."""
    async with (
        ScriptedServer(then=refused(429, status=429)) as server,
        client_of(server, retry=RetryPolicy(give_up_after=30)) as client,
    ):
        with pytest.raises(RateLimitError):
            await client.generate("a red fox")
        assert 4 <= len(server.requests) <= 7
        assert not server.accepted


@pytest.mark.fault("S7")
async def test_maintenance_is_waited_for() -> None:
    """Code 455 inside HTTP 200 is a refusal of the moment."""
    async with (
        ScriptedServer([refused(455), accepted()]) as server,
        client_of(server) as client,
    ):
        assert (await client.generate("a red fox")).task_id == TASK
    async with (
        ScriptedServer(then=refused(455)) as server,
        client_of(server, retry=RetryPolicy(give_up_after=5)) as client,
    ):
        with pytest.raises(MaintenanceError):
            await client.generate("a red fox")


@pytest.mark.fault("S7")
async def test_maintenance_says_how_long() -> None:
    """Its Retry-After is a minimum like that of a 429; one that is too long is told at once."""
    async with (
        ScriptedServer([refused(455, Retry_After="30"), accepted()]) as server,
        client_of(server) as client,
    ):
        begun = asyncio.get_running_loop().time()
        await client.generate("a red fox")
        assert asyncio.get_running_loop().time() - begun >= 30
    async with (
        ScriptedServer(then=refused(455, Retry_After="1000000000")) as server,
        client_of(server) as client,
    ):
        with pytest.raises(MaintenanceError) as caught:
            await client.generate("a red fox")
        assert caught.value.retry_after == 1e9
        assert len(submits(server)) == 1


@pytest.mark.fault("S13")
async def test_cancelled_anywhere_the_answer_is_kept() -> None:
    """Wherever the caller is cancelled: at most one POST, and its task id is journaled."""
    for step in cancel_at_each_step():
        journal = MemoryJournal()
        async with (
            ScriptedServer(then=delay(accepted(), 1)) as server,
            client_of(server, journal=journal, rate_limit=RateLimit(5)) as client,
        ):
            task = await step.run(client.generate("a red fox", key="k"))
            await asyncio.sleep(5)
            rows = await rows_of(server, journal)
            assert len(submits(server)) == len(server.accepted) == len(rows)
            assert all(row.task_id == TASK for row in rows)
            assert task.cancelled() == step.struck
            assert (await client.generate("a red fox", key="k")).task_id == TASK
            await assert_nothing_lost(server, journal)


@pytest.mark.fault("S13")
async def test_generate_and_wait_cancelled_anywhere_is_resumed() -> None:
    """Whatever generate_and_wait loses to a cancellation, resume gives."""
    for step in cancel_at_each_step():
        journal = MemoryJournal()
        async with (
            ScriptedServer(then=mid(accepted(), looked())) as server,
            client_of(server, journal=journal) as client,
        ):
            task = await step.run(client.generate_and_wait("a red fox"))
            await asyncio.sleep(1)
            handles = await client.resume()
            assert len(submits(server)) <= 1
            if task.cancelled() and submits(server):
                assert [handle.task_id for handle in handles] == [TASK]
                assert len((await handles[0]).urls) == 4
            elif submits(server):
                assert handles == []


@pytest.mark.fault("S13")
async def test_in_a_folder_cancelled_anywhere_the_answer_is_kept(tmp_path: Path) -> None:
    """The same with a journal on disk, whose every row is an await of its own."""
    for step in cancel_at_each_step():
        journal = SQLiteJournal(tmp_path / f"{step.moment}-{step.number}")
        async with (
            ScriptedServer(then=delay(accepted(), 1)) as server,
            client_of(server, journal=journal) as client,
        ):
            task = await step.run(client.generate("a red fox", key="k"))
            await asyncio.sleep(5)
            rows = await journal.rows(f"{server.url} default")
            # Cancelled while its row was being written, it sends nothing and refuses the row (S34).
            sent = [row for row in rows if row.state is not State.REFUSED]
            assert len(submits(server)) == len(server.accepted) == len(sent)
            assert all(row.task_id == TASK for row in sent)
            assert task.cancelled() == step.struck
            assert (await client.generate("a red fox", key="k")).task_id == TASK
            assert len(submits(server)) == 1
        await journal.aclose()


@pytest.mark.fault("S13")
async def test_settle_cancelled_anywhere_can_be_settled_again() -> None:
    """A cancelled settle leaves the intent as it was; nothing is sent."""
    for step in cancel_at_each_step():
        async with ScriptedServer([lose_answer()]) as server, client_of(server) as client:
            with pytest.raises(SubmissionUnknown) as caught:
                await client.generate("a red fox", key="k")
            intent_id = caught.value.intent_id
            adopting = asyncio.create_task(adopt_later(client, intent_id))
            task = await step.run(client.intents.settle(intent_id, timeout=30))
            await asyncio.sleep(2)
            assert await adopting == TASK
            assert task.cancelled() == step.struck
            assert (await client.intents.settle(intent_id)).task_id == TASK
            assert len(server.requests) == 1


async def adopt_later(client: MidAPIClient, intent_id: str) -> str:
    await asyncio.sleep(1)
    return (await client.intents.adopt(intent_id, TASK, force=True)).task_id


@pytest.mark.fault("S15")
async def test_one_key_from_two_coroutines_is_one_post() -> None:
    """Twenty submissions with one key at once: one POST, one task, twenty handles."""
    async with (
        ScriptedServer([delay(accepted(), 3)]) as server,
        client_of(server, rate_limit=RateLimit(2)) as client,
    ):
        handles = await asyncio.gather(*(client.generate("a red fox", key="k") for _ in range(20)))
        assert {handle.task_id for handle in handles} == {TASK}
        assert len(submits(server)) == 1


@pytest.mark.fault("S15")
async def test_two_clients_on_one_journal() -> None:
    """The second client waits for the row of the first."""
    journal = MemoryJournal()
    async with (
        ScriptedServer([delay(accepted(), 3)]) as server,
        client_of(server, journal=journal) as one,
        client_of(server, journal=journal) as two,
    ):
        first = asyncio.create_task(one.generate("a red fox", key="k"))
        await asyncio.sleep(1)
        second = await two.generate("a red fox", key="k")
        assert second.task_id == (await first).task_id
        assert second.intent_id == first.result().intent_id
        assert len(submits(server)) == 1


@pytest.mark.fault("S15")
async def test_the_second_sends_what_the_first_was_refused() -> None:
    """A row that turns out refused leaves its key to whoever waited for it, elsewhere."""
    journal = MemoryJournal()
    async with (
        ScriptedServer([delay(refused(402), 3), accepted()]) as server,
        client_of(server, journal=journal) as one,
        client_of(server, journal=journal) as two,
    ):
        first = asyncio.create_task(one.generate("a red fox", key="k"))
        await asyncio.sleep(1)
        second = asyncio.create_task(two.generate("a red fox", key="k"))
        with pytest.raises(InsufficientCreditsError):
            await first
        assert (await second).task_id == TASK


async def test_keys_another_request_is_a_conflict() -> None:
    """The same key for another request sends nothing; equal requests are equal however put."""
    async with ScriptedServer([accepted()]) as server, client_of(server) as client:
        await client.generate("a red fox", key="k")
        again = await client.generate(TextToImage("a red fox", speed="fast"), key="k")
        assert again.task_id == TASK
        with pytest.raises(KeyConflict, match="'k' was used"):
            await client.generate("a blue whale", key="k")


async def test_keys_a_refused_request_may_be_corrected_under_its_key() -> None:
    """Nothing was bought, so the key is free, for another request too."""
    script = [refused(422, "a bad word"), accepted()]
    async with ScriptedServer(script) as server, client_of(server) as client:
        with pytest.raises(UnprocessableError):
            await client.generate("a bad fox", key="k")
        assert (await client.generate("a good fox", key="k")).task_id == TASK


async def test_keys_in_memory_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    """The first key without a folder logs one warning."""
    async with ScriptedServer(then=selling()) as server, client_of(server) as client:
        await client.generate("a red fox", key="k")
        await client.generate("a red fox", key="l")
    assert caplog.text.count("in memory only") == 1


class BrokenJournal(MemoryJournal):
    """Fails where it is told to."""

    def __init__(self, *failing: str) -> None:
        super().__init__()
        self.failing = set(failing)

    async def claim(self, *args: Any, **names: Any) -> Claim:
        if "claim" in self.failing:
            raise JournalError("the disk is full")
        return await super().claim(*args, **names)

    async def advance(self, intent_id: str, to: State | None = None, **names: Any) -> Intent:
        if to is not None and to.value in self.failing:
            raise JournalError("the disk is full")
        return await super().advance(intent_id, to, **names)


@pytest.mark.fault("S16")
async def test_no_row_no_post() -> None:
    """The journal cannot be written before the POST: no POST, and the turn is free again."""
    async with (
        ScriptedServer() as server,
        client_of(server, journal=BrokenJournal("claim"), rate_limit=RateLimit(1)) as client,
    ):
        for _ in range(3):
            with pytest.raises(JournalError):
                await client.generate("a red fox")
        assert not server.requests


@pytest.mark.fault("S17")
async def test_the_journal_fails_after_the_answer(caplog: pytest.LogCaptureFixture) -> None:
    """The id is returned, told as CRITICAL, and written when the journal works again."""
    journal = BrokenJournal("accepted")
    async with (
        ScriptedServer([accepted()]) as server,
        client_of(server, journal=journal) as client,
    ):
        handle = await client.generate("a red fox")
        assert handle.task_id == TASK
        loud = [each.levelno for each in caplog.records if each.levelno > logging.INFO]
        assert loud == [logging.CRITICAL]
        assert TASK in caplog.text
        await asyncio.sleep(5)
        assert [row.state for row in await rows_of(server, journal)] == [State.SENDING]
        journal.failing.clear()
        await asyncio.sleep(5)
        assert [row.task_id for row in await rows_of(server, journal)] == [TASK]


@pytest.mark.fault("S17")
async def test_a_journal_that_stays_broken_is_said_at_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The last word about an id that is in no journal is CRITICAL, and closing does not hang."""
    async with (
        ScriptedServer([accepted()]) as server,
        client_of(server, journal=BrokenJournal("accepted")) as client,
    ):
        await client.generate("a red fox")
    assert f"task {TASK}" in caplog.records[-1].getMessage()
    assert "was never written to the journal" in caplog.records[-1].getMessage()


@pytest.mark.fault("S17")
@pytest.mark.parametrize("state", ["refused", "unknown"])
async def test_other_states_that_cannot_be_written(state: str) -> None:
    """The caller is told the truth at once, and the journal as soon as it takes it."""
    answer = refused(402) if state == "refused" else lose_answer()
    journal = BrokenJournal(state)
    async with (
        ScriptedServer([answer]) as server,
        client_of(server, journal=journal) as client,
    ):
        with pytest.raises(MidAPIError) as caught:
            await client.generate("a red fox")
        assert (state == "unknown") == isinstance(caught.value, SubmissionUnknown)
        await asyncio.sleep(3)
        assert [row.state for row in await rows_of(server, journal)] == [State.SENDING]
        journal.failing.clear()
        await asyncio.sleep(3)
        assert [row.state for row in await rows_of(server, journal)] == [state]


@pytest.mark.fault("S17")
async def test_a_journal_that_breaks_its_word(caplog: pytest.LogCaptureFixture) -> None:
    """Any exception of a journal, or of ours, behind the POST: the id is kept, or it is unknown."""

    class Careless(BrokenJournal):
        async def advance(self, *args: object, **names: object) -> Intent:
            try:
                return await super().advance(*args, **names)  # type: ignore[arg-type]
            except JournalError:
                raise OSError("no space left") from None

    journal = Careless("accepted")
    async with (
        ScriptedServer([accepted(), accepted("second")]) as server,
        client_of(server, journal=journal) as client,
    ):
        assert (await client.generate("a red fox", key="k")).task_id == TASK
        assert "CRITICAL" in {entry.levelname for entry in caplog.records}
        journal.failing.clear()
        await asyncio.sleep(3)
        assert (await client.generate("a red fox", key="k")).task_id == TASK

        async def broken(_: Call, __: object) -> Answer:
            raise RuntimeError("a bug of ours")

        client._opened().sender._send = broken
        with pytest.raises(SubmissionUnknown, match="RuntimeError"):
            await client.generate("a blue whale", key="l")
        assert len(await client.intents.unknown()) == 1


@pytest.mark.parametrize("timeout", [float("nan"), "60", True, [1]])
async def test_a_wrong_wait_timeout_costs_nothing(timeout: object) -> None:
    """It is named before anything is bought."""
    async with ScriptedServer() as server, client_of(server) as client:
        with pytest.raises(InvalidRequestError, match="timeout"):
            await client.generate_and_wait("a red fox", wait_timeout=timeout)  # type: ignore[call-overload]
        assert not server.requests


async def test_a_huge_wait_timeout_is_for_ever() -> None:
    """Numbers beyond a float wait for ever, as infinity does."""
    async with ScriptedServer(then=selling()) as server:
        async with client_of(server) as client:
            assert (await client.generate_and_wait("a", wait_timeout=10**400)).is_final
            assert (await client.generate_and_wait("b", wait_timeout=float("inf"))).is_final


@pytest.mark.fault("S18")
async def test_giving_up_at_the_gate_leaves_nothing() -> None:
    """Cancelled while it waits for its turn: nothing written, nothing sent, the turn passed on."""
    journal = MemoryJournal()
    async with (
        ScriptedServer(then=selling()) as server,
        client_of(server, journal=journal, rate_limit=RateLimit(1, per=10)) as client,
    ):
        await client.generate("first")
        waiting = [asyncio.create_task(client.generate(f"{n}")) for n in range(3)]
        await asyncio.sleep(1)
        assert client.stats().at_the_gate == 3
        waiting[0].cancel()
        waiting[1].cancel()
        await asyncio.sleep(10)
        assert waiting[2].done()
        assert 2 == len(await rows_of(server, journal)) == len(server.requests)


@pytest.mark.fault("S5")
async def test_429_pauses_everybody() -> None:
    """One 429 and nobody else runs into it: the gate rests for all."""
    async with (
        ScriptedServer([refused(429, status=429, Retry_After="30")], then=selling()) as server,
        client_of(server, rate_limit=RateLimit(20)) as client,
    ):
        begun = asyncio.get_running_loop().time()
        first = asyncio.create_task(client.generate("first"))
        await server.arrived(1)
        await asyncio.sleep(0.1)
        await client.generate("second")
        assert 30 <= asyncio.get_running_loop().time() - begun <= 45
        await first


@pytest.mark.fault("L6")
async def test_closing_lets_a_post_answer() -> None:
    """A POST on its way gets its answer, the caller its handle's task id in the journal."""
    journal = MemoryJournal()
    async with ScriptedServer([delay(accepted(), 5)]) as server:
        client = client_of(server, journal=journal)
        await client.open()
        task = asyncio.create_task(client.generate("a red fox"))
        await server.arrived(1)
        await client.aclose()
        await client.aclose()
        assert [row.task_id for row in await rows_of(server, journal)] == [TASK]
        handle = await task
        assert handle.task_id == TASK
        with pytest.raises(ClientClosed) as caught:
            await handle
        assert caught.value.task_id == TASK


@pytest.mark.fault("L6")
async def test_a_post_that_never_answers_does_not_hold_the_end() -> None:
    """Within the bound the row is UNKNOWN and the caller knows it."""
    journal = MemoryJournal()
    async with ScriptedServer([hang()]) as server:
        client = client_of(server, journal=journal)
        await client.open()
        task = asyncio.create_task(client.generate("a red fox"))
        await server.arrived(1)
        begun = asyncio.get_running_loop().time()
        await client.aclose()
        assert asyncio.get_running_loop().time() - begun < 25
        assert [row.state for row in await rows_of(server, journal)] == [State.UNKNOWN]
        with pytest.raises(SubmissionUnknown):
            await task


@pytest.mark.fault("L6")
async def test_closing_names_a_task_that_another_process_has_accepted() -> None:
    """Its callback went to another process: the error must not say that nothing was bought."""
    journal = MemoryJournal()
    async with ScriptedServer([hang()]) as server:
        client = client_of(server, journal=journal)
        await client.open()
        task = asyncio.create_task(client.generate("a red fox"))
        await server.arrived(1)
        (row,) = await rows_of(server, journal)
        await journal.advance(row.intent_id, State.ACCEPTED, task_id=TASK)
        await client.aclose()
        with pytest.raises(ClientClosed) as caught:
            await task
        assert caught.value.task_id == TASK


@pytest.mark.fault("L6")
async def test_closing_before_the_row_is_written_buys_nothing() -> None:
    """A claim that hangs past the bound: nothing was sent, and the caller is told that."""

    class Stuck(MemoryJournal):
        async def claim(self, *args: Any, **names: Any) -> Claim:
            await asyncio.sleep(1000)
            return await super().claim(*args, **names)

    async with ScriptedServer() as server:
        client = client_of(server, journal=Stuck())
        await client.open()
        task = asyncio.create_task(client.generate("a red fox"))
        await asyncio.sleep(1)
        await client.aclose()
        with pytest.raises(ClientClosed):
            await task
        assert not server.requests


@pytest.mark.fault("L6")
async def test_closing_ends_the_pauses_between_attempts() -> None:
    """What was certainly not bought is given up at once when the client closes."""
    journal = MemoryJournal()
    async with ScriptedServer([refused(429, status=429, Retry_After="50")]) as server:
        client = client_of(server, journal=journal)
        await client.open()
        task = asyncio.create_task(client.generate("a red fox"))
        await server.arrived(1)
        await asyncio.sleep(1)
        begun = asyncio.get_running_loop().time()
        await client.aclose()
        assert asyncio.get_running_loop().time() - begun < 2
        assert [row.state for row in await rows_of(server, journal)] == [State.REFUSED]
        with pytest.raises(ClientClosed):
            await task


@pytest.mark.fault("I1")
@pytest.mark.fault("I2")
@pytest.mark.fault("I4")
async def test_aclose_cancelled_anywhere_leaves_nothing_behind() -> None:
    """Each suspension of aclose: a second one ends, nothing is lost or paid twice."""
    for step in cancel_at_each_step():
        journal = MemoryJournal()
        async with ScriptedServer([delay(accepted(), 2)]) as server:
            client = client_of(server, journal=journal)
            await client.open()
            task = asyncio.create_task(client.generate("a red fox"))
            await server.arrived(1)
            await step.run(client.aclose())
            await client.aclose()
            await asyncio.wait({task})
            task.exception()
            await assert_nothing_lost(server, journal)


async def test_the_body_is_what_the_wire_document_says() -> None:
    """Spelling, defaults, path and headers of a POST."""
    async with ScriptedServer(then=selling()) as server, client_of(server) as client:
        await client.generate("a red fox", aspect_ratio="16:9", callback_url="https://me.example/x")
        await client.generate(Vary("abc", 4))
        first, second = server.requests
        assert first.json() == {
            "taskType": "mj_txt2img",
            "prompt": "a red fox",
            "speed": "fast",
            "aspectRatio": "16:9",
            "enableTranslation": False,
            "callBackUrl": "https://me.example/x",
        }
        assert first.target == "/api/v1/mj/generate"
        assert first.headers["content-type"] == "application/json"
        assert first.headers["authorization"].startswith("Bearer ")
        assert second.target == "/api/v1/mj/generateVary"
        assert second.json() == {"taskId": "abc", "imageIndex": 4}


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": ""},
        {"key": "x" * 201},
        {"key": "a\nb"},
        {"key": 5},
        {"metadata": {"a": 1}},
        {"metadata": ["a"]},
        {"metadata": {"a": "x" * 5000}},
        {"metadata": {"a": "\ud800"}},
        {"callback_url": "me.example"},
        {"callback_url": 5},
        {"bogus": 1},
        {"aspect_ratio": "17:9"},
    ],
)
async def test_bad_input_is_named_before_anything_is_sent(wrong: dict[str, object]) -> None:
    """Each wrong argument is an InvalidRequestError that names it."""
    async with ScriptedServer() as server, client_of(server) as client:
        with pytest.raises(InvalidRequestError) as caught:
            await client.generate("a red fox", **wrong)  # type: ignore[call-overload]
        assert set(wrong) == set(caught.value.problems)
        assert not server.requests


@pytest.mark.parametrize("what", [None, 5, b"x", {"prompt": "x"}, TextToImage, ""])
async def test_what_is_no_request_is_refused(what: object) -> None:
    """Anything but a prompt or one of the eight requests."""
    async with ScriptedServer() as server, client_of(server) as client:
        with pytest.raises(InvalidRequestError):
            await client.generate(what)  # type: ignore[call-overload]
        with pytest.raises(InvalidRequestError, match="speed"):
            await client.generate(Vary("a", 1), speed="fast")  # type: ignore[call-overload]
        assert not server.requests


class LateAdvance(MemoryJournal):
    """Writes outcomes at a moment of its loop."""

    moment = 0.0

    async def advance(self, *args: Any, **options: Any) -> Intent:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self.moment - loop.time())
        return await super().advance(*args, **options)


@pytest.mark.fault("L17")
async def test_a_deadline_while_the_answer_is_written_names_the_submission() -> None:
    """It was bought: WaitTimeout must not say that nothing was sent."""
    journal = LateAdvance()
    async with ScriptedServer(then=mid(submit=accepted())) as server:
        async with client_of(server, journal=journal) as client:
            journal.moment = asyncio.get_running_loop().time() + 5
            with pytest.raises(WaitTimeout) as caught:
                await client.generate("a red fox", timeout=2)
            assert caught.value.intent_id is not None
            assert (await client.intents.settle(caught.value.intent_id)).task_id == TASK


@pytest.mark.fault("L17")
@pytest.mark.parametrize("early", [0.0, 1e-10, 5e-10])
async def test_an_outcome_at_the_moment_of_the_deadline_is_not_lost(early: float) -> None:
    """The caller gets the task, or the submission's name."""
    journal = LateAdvance()
    async with ScriptedServer(then=mid(submit=accepted())) as server:
        async with client_of(server, journal=journal) as client:
            journal.moment = asyncio.get_running_loop().time() + 2 - early
            try:
                assert (await client.generate("a red fox", timeout=2)).task_id == TASK
            except WaitTimeout as timeout:
                assert timeout.intent_id is not None  # noqa: PT017 - either may come


@pytest.mark.fault("S34")
async def test_a_resubmission_beside_a_line_waits_for_no_second_slot() -> None:
    """Its claim ahead of the line is its turn; its row does not stay when the caller leaves."""
    script = mid(submit=delay(accepted(), 100))
    journal = MemoryJournal()
    async with ScriptedServer([lose_answer()], then=script) as server:
        async with client_of(server, journal=journal, rate_limit=RateLimit(20, per=10)) as client:
            with pytest.raises(SubmissionUnknown) as caught:
                await client.generate("a red fox", key="k")
            await asyncio.sleep(20)
            others = [asyncio.create_task(client.generate(f"fox {n}")) for n in range(30)]
            resubmit = asyncio.create_task(client.intents.resubmit(caught.value.intent_id))
            await asyncio.sleep(0.1)
            resubmit.cancel()
            for other in others:
                other.cancel()
            await asyncio.sleep(200)
            assert not await journal.rows(states=[State.SENDING, State.RESTING])


@pytest.mark.fault("S26")
@pytest.mark.parametrize("error", [JournalError("down"), RuntimeError("odd")])
@pytest.mark.parametrize("fails", ["claim", "release"])
async def test_a_journal_that_fails_during_a_rest_leaves_no_row_behind(
    fails: str, error: Exception
) -> None:
    """It fails for some seconds, for every call: the key can be used when it is back."""

    class Failing(MemoryJournal):
        is_down = False

        async def claim(self, *args: Any, **options: Any) -> Claim:
            if self.is_down:
                raise error
            return await super().claim(*args, **options)

        async def release(self, *args: Any, **options: Any) -> None:
            self.is_down = self.is_down or fails == "release"
            if self.is_down:
                raise error
            await super().release(*args, **options)
            self.is_down = True

        async def advance(self, *args: Any, **options: Any) -> Intent:
            if self.is_down:
                raise error
            return await super().advance(*args, **options)

    journal = Failing()
    script = [refused(429)]
    async with ScriptedServer(script, then=mid(submit=accepted())) as server:
        async with client_of(server, journal=journal) as client:
            with pytest.raises(type(error)):
                await client.generate("a red fox", key="k")
            await asyncio.sleep(5)
            journal.is_down = False
            assert (await client.generate("a red fox", key="k", timeout=10)).task_id == TASK
            assert len(submits(server)) == 2


@pytest.mark.fault("S26")
async def test_a_caller_that_waits_for_another_ones_post_outlives_a_failure_of_the_journal() -> (
    None
):
    """The POST is under way: no JournalError may say that nothing was bought."""

    class Failing(MemoryJournal):
        is_down = False

        async def find(self, **names: Any) -> Intent | None:
            if self.is_down:
                raise JournalError("down")
            return await super().find(**names)

    journal = Failing()
    async with ScriptedServer([delay(accepted(), 20)]) as server:
        async with (
            client_of(server, journal=journal) as one,
            client_of(server, journal=journal) as two,
        ):
            first = asyncio.create_task(one.generate("a red fox", key="k"))
            await server.arrived()
            second = asyncio.create_task(two.generate("a red fox", key="k"))
            await asyncio.sleep(1)
            journal.is_down = True
            await journal.note("scope", "kind", "name", "value")
            await asyncio.sleep(3)
            journal.is_down = False
            assert (await first).task_id == (await second).task_id == TASK


@pytest.mark.fault("S1")
async def test_settling_a_submission_whose_answer_gets_lost_waits_for_its_callback() -> None:
    """Another caller of it gets SubmissionUnknown; the one that settles asked to wait."""
    journal = MemoryJournal()
    async with ScriptedServer([delay(then_close(raw(b"")), 5)]) as server:
        async with client_of(server, journal=journal) as client:
            caller = asyncio.create_task(client.generate("a red fox"))
            await server.arrived()
            [row] = await journal.rows()
            settling = asyncio.create_task(client.intents.settle(row.intent_id, 60))
            with pytest.raises(SubmissionUnknown):
                await caller
            await asyncio.sleep(10)
            await journal.advance(row.intent_id, State.ACCEPTED, task_id=TASK)
            assert (await settling).task_id == TASK


@pytest.mark.fault("L6")
async def test_a_close_behind_a_callback_that_another_process_took_names_the_task() -> None:
    """It was bought: ClientClosed must not say that nothing was sent."""
    journal = MemoryJournal()
    async with ScriptedServer([hang()]) as server:
        client = client_of(server, journal=journal)
        await client.open()
        caller = asyncio.create_task(client.generate("a red fox"))
        await server.arrived()
        [row] = await journal.rows()
        await journal.advance(row.intent_id, State.ACCEPTED, task_id=TASK)
        await client.aclose()
        with pytest.raises(ClientClosed) as caught:
            await caller
        assert caught.value.task_id == TASK


@pytest.mark.fault("S5")
async def test_a_huge_retry_after_does_not_stop_the_account() -> None:
    """It ends its own submission at once; the account pauses for at most two minutes."""
    async with (
        ScriptedServer([refused(429, Retry_After="1000000")], then=mid(accepted())) as server,
        client_of(server) as client,
    ):
        with pytest.raises(RateLimitError):
            await client.generate("a red fox")
        assert (await client.generate("a red fox", timeout=121)).task_id == TASK


@pytest.mark.fault("S5")
async def test_looks_pause_too() -> None:
    """MidAPI counts all requests of the account, so a 429 of a POST delays the looks."""
    async with (
        ScriptedServer([accepted(), refused(429, Retry_After="100")], then=mid(look=looked())) as (
            server
        ),
        client_of(server, retry=RetryPolicy(give_up_after=50)) as client,
    ):
        handle = await client.generate("a red fox")
        await asyncio.sleep(300)  # its look is due
        with pytest.raises(RateLimitError):
            await client.generate("a blue fox")
        waiting = asyncio.create_task(handle.wait())
        await asyncio.sleep(95)
        assert looks(server) == []
        assert (await waiting).task_id == TASK


async def test_attempts_count_against_the_time_to_give_up() -> None:
    """MidAPI is slow to refuse: the time of the attempts is spent, not only that of the pauses."""
    async with (
        ScriptedServer(then=mid(submit=delay(refused(429, Retry_After="1"), 20))) as server,
        client_of(server, retry=RetryPolicy(give_up_after=50)) as client,
    ):
        with pytest.raises(RateLimitError):
            await client.generate("a red fox")
        assert len(submits(server)) == 3


@pytest.mark.fault("S17")
@pytest.mark.parametrize("error", [LookupError("a bug"), OSError("odd"), AssertionError])
async def test_any_bug_after_the_post_began_makes_it_unknown(error: Exception) -> None:
    """The POST may have been accepted, so the intent may not stay in SENDING, or be free again."""
    journal = MemoryJournal()
    async with ScriptedServer() as server, client_of(server, journal=journal) as client:

        async def broken(_: Call, __: object) -> Answer:
            raise error

        client._opened().sender._send = broken
        with pytest.raises(SubmissionUnknown):
            await client.generate("a red fox", key="k")
        assert [row.state for row in await rows_of(server, journal)] == [State.UNKNOWN]


@pytest.mark.fault("S17")
async def test_closing_waits_for_the_last_attempt_to_write() -> None:
    """The journal works again when the client closes, but is slow: the task id is not lost."""

    class Slow(BrokenJournal):
        async def advance(self, *args: Any, **names: Any) -> Intent:
            await asyncio.sleep(0.0 if self.failing else 0.5)
            return await super().advance(*args, **names)

    journal = Slow("accepted")
    async with ScriptedServer([accepted()]) as server:
        async with client_of(server, journal=journal) as client:
            await client.generate("a red fox")
            journal.failing.clear()
        assert [row.task_id for row in await rows_of(server, journal)] == [TASK]


@pytest.mark.fault("S15")
async def test_a_caller_that_leaves_does_not_stop_the_other_one() -> None:
    """Two wait for one submission, which rests after a 429; one is still there for the repeat."""
    async with (
        ScriptedServer([refused(429, Retry_After="30"), accepted()]) as server,
        client_of(server) as client,
    ):
        first = asyncio.create_task(client.generate("a red fox", key="k"))
        await server.arrived()
        with pytest.raises(WaitTimeout):
            await client.generate("a red fox", key="k", timeout=5)
        assert (await first).task_id == TASK


async def test_a_task_of_another_intent_does_not_end_a_post() -> None:
    """A callback names a wrong task while the POST is under way; the answer names the right one."""
    journal = MemoryJournal()
    async with (
        ScriptedServer([accepted(), delay(accepted("second"), 10)]) as server,
        client_of(server, journal=journal) as client,
    ):
        await client.generate("a red fox")
        caller = asyncio.create_task(client.generate("a blue fox"))
        await server.arrived(2)
        [row] = await journal.rows(states=[State.SENDING])
        assert (await client._opened().outcomes.bind(row, TASK)).task_id is None
        assert (await caller).task_id == "second"


@pytest.mark.parametrize("wakes", ["meanwhile", "later"])
async def test_a_task_of_another_intent_settles_nothing(wakes: str) -> None:
    """Whoever settles must not get it, neither while the journal decides nor afterwards."""

    class Slow(MemoryJournal):
        async def advance(self, *args: Any, **names: Any) -> Intent:
            await asyncio.sleep(2)
            return await super().advance(*args, **names)

    journal = Slow()
    async with (
        ScriptedServer([accepted(), lose_answer()]) as server,
        client_of(server, journal=journal) as client,
    ):
        await client.generate("a red fox")
        with pytest.raises(SubmissionUnknown) as caught:
            await client.generate("a blue fox")
        [row] = await journal.rows(states=[State.UNKNOWN])
        settling = asyncio.create_task(client.intents.settle(caught.value.intent_id, timeout=20))
        await asyncio.sleep(1)
        binding = asyncio.create_task(client._opened().outcomes.bind(row, TASK))
        await asyncio.sleep(1 if wakes == "meanwhile" else 5)
        await journal.note("scope", "kind", "name", "value")  # a change that wakes all waiters
        with pytest.raises(SubmissionUnknown):
            await settling
        assert (await binding).task_id is None


async def test_a_task_that_could_not_be_written_is_forgotten_with_the_next_callback() -> None:
    """At first the journal fails, then it finds that the task is another intent's."""
    journal = BrokenJournal()
    async with (
        ScriptedServer([accepted(), lose_answer()]) as server,
        client_of(server, journal=journal) as client,
    ):
        await client.generate("a red fox")
        with pytest.raises(SubmissionUnknown):
            await client.generate("a blue fox")
        [row] = await journal.rows(states=[State.UNKNOWN])
        bind = client._opened().outcomes.bind
        journal.failing.add("accepted")
        with pytest.raises(JournalError):
            await bind(row, TASK)
        journal.failing.clear()
        assert (await bind(row, TASK)).task_id is None
        with pytest.raises(SubmissionUnknown):
            await client.intents.settle(row.intent_id, timeout=20)


@pytest.mark.fault("S16")
async def test_a_claim_that_fails_after_it_was_written_is_withdrawn() -> None:
    """Nothing was sent, so the row may not stay SENDING and keep its key."""

    class Late(MemoryJournal):
        fails = True

        async def claim(self, *args: Any, **options: Any) -> Claim:
            claim = await super().claim(*args, **options)
            if self.fails:
                raise JournalError("the disk is gone")
            return claim

    journal = Late()
    async with (
        ScriptedServer([accepted()]) as server,
        client_of(server, journal=journal) as client,
    ):
        with pytest.raises(JournalError):
            await client.generate("a red fox", key="k")
        await asyncio.sleep(5)
        assert [row.state for row in await rows_of(server, journal)] == [State.REFUSED]
        journal.fails = False
        assert (await client.generate("a red fox", key="k", timeout=5)).task_id == TASK


@pytest.mark.fault("S16")
async def test_s16_a_row_that_a_busy_journal_has_written_is_withdrawn() -> None:
    """A claim whose COMMIT had no answer is tried again, and then there may be no slot.

    When the caller gives up, nothing was sent: the key may not stay in use.
    """

    class Cut(MemoryJournal):
        is_cut = True

        async def claim(self, *args: Any, **options: Any) -> Claim:
            if self.is_cut:
                await super().claim(*args, **options)
                return Busy(1000.0)
            return await super().claim(*args, **options)

    journal = Cut()
    async with (
        ScriptedServer([accepted()]) as server,
        client_of(server, journal=journal) as client,
    ):
        with pytest.raises(WaitTimeout):
            await client.generate("a red fox", key="k", timeout=5)
        await asyncio.sleep(5)
        assert [row.state for row in await rows_of(server, journal)] == [State.REFUSED]
        journal.is_cut = False
        assert (await client.generate("a red fox", key="k", timeout=2000)).task_id == TASK


@pytest.mark.parametrize("code", [422, 429])
async def test_a_refusal_after_a_callback_that_another_process_took(code: int) -> None:
    """The callback proves that it was bought, so the caller gets the task and not the refusal."""
    journal = MemoryJournal()
    async with (
        ScriptedServer([delay(refused(code, Retry_After="1000"), 10)]) as server,
        client_of(server, journal=journal) as client,
    ):
        caller = asyncio.create_task(client.generate("a red fox", key="k"))
        await server.arrived()
        [row] = await journal.rows()
        await journal.advance(row.intent_id, State.ACCEPTED, task_id=TASK)
        assert (await caller).task_id == TASK


@pytest.mark.fault("L6")
async def test_closing_during_a_claim_that_hangs_withdraws_it() -> None:
    """It was written before it hung; nothing was sent, so its key is free again."""

    class Hanging(MemoryJournal):
        async def claim(self, *args: Any, **options: Any) -> Claim:
            await super().claim(*args, **options)
            await asyncio.sleep(100_000)
            raise AssertionError

    journal = Hanging()
    async with ScriptedServer() as server:
        async with client_of(server, journal=journal) as client:
            caller = asyncio.create_task(client.generate("a red fox", key="k"))
            await asyncio.sleep(1)
        with pytest.raises(ClientClosed):
            await caller
        assert [row.state for row in await rows_of(server, journal)] == [State.REFUSED]


@pytest.mark.fault("S6")
async def test_a_resubmission_without_a_free_slot_waits_in_the_line() -> None:
    """Its key is known, so it asks ahead of the line; it still needs a slot of its own."""
    limit = RateLimit(1, per=60)
    async with (
        ScriptedServer([lose_answer()], then=selling()) as server,
        client_of(server, rate_limit=limit) as client,
    ):
        with pytest.raises(SubmissionUnknown) as caught:
            await client.generate("a red fox", key="k")
        waiting = asyncio.create_task(client.generate("a blue fox"))
        await asyncio.sleep(10)
        resubmitted, other = await asyncio.gather(
            client.intents.resubmit(caught.value.intent_id), waiting
        )
        assert resubmitted.task_id != other.task_id
        assert len(submits(server)) == 3


@pytest.mark.fault("S21")
async def test_an_answer_with_the_task_of_another_intent_is_unknown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A proxy repeats an old answer: what was bought is not known, and nothing is sent again."""
    journal = MemoryJournal()
    async with (
        ScriptedServer(then=mid(submit=accepted())) as server,
        client_of(server, journal=journal) as client,
    ):
        await client.generate("a red fox")
        with pytest.raises(SubmissionUnknown, match=TASK):
            await client.generate("a blue fox", key="k")
        with pytest.raises(SubmissionUnknown):
            await client.generate("a blue fox", key="k")
        assert len(submits(server)) == 2
        states = [row.state for row in await rows_of(server, journal)]
        assert states == [State.ACCEPTED, State.UNKNOWN]
    assert [entry.levelname for entry in caplog.records].count("CRITICAL") == 1


async def test_a_slot_is_held_for_longer_than_a_post_may_take() -> None:
    """On a busy machine its end is seen late; until then MidAPI may still count it."""
    held = []

    class Recording(MemoryJournal):
        async def claim(self, *args: Any, longest_post: float) -> Claim:
            held.append(longest_post)
            return await super().claim(*args, longest_post=longest_post)

    async with (
        ScriptedServer([accepted()]) as server,
        client_of(server, journal=Recording(), timeouts=Timeouts(submit=100)) as client,
    ):
        await client.generate("a red fox")
    assert held == [105.0]


NAMED: dict[str, Step] = {
    "refused": refused(402),
    "unknown": reply(502),
    "rate limit": refused(429, Retry_After="1000"),
}


@pytest.mark.fault("P22")
@pytest.mark.parametrize("fault", NAMED)
async def test_an_error_of_a_submission_names_its_key_and_its_intent(fault: str) -> None:
    """Whoever catches it in a batch can tell which request it was; copies can, too."""
    journal = MemoryJournal()
    async with (
        ScriptedServer([NAMED[fault]]) as server,
        client_of(server, journal=journal, retry=RetryPolicy(give_up_after=0)) as client,
    ):
        with pytest.raises(MidAPIError) as caught:
            await client.generate("a red fox", key="k")
        (row,) = await rows_of(server, journal)
        for error in (caught.value, copy.copy(caught.value)):
            assert (error.key, error.intent_id, error.task_id) == ("k", row.intent_id, None)


async def test_an_error_before_a_row_is_written_names_the_key_only() -> None:
    """There is no intent that could be asked about."""
    async with ScriptedServer() as server, client_of(server) as client:
        client.stop_waiting()
        with pytest.raises(ClientClosed) as caught:
            await client.generate("a red fox", key="k")
        assert (caught.value.key, caught.value.intent_id, caught.value.task_id) == ("k", None, None)
