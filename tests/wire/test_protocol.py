"""The rules of the wire: what each answer means, and above all what it proves about money."""

import html
import json
import unicodedata
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from midapi_async._wire import protocol as _protocol
from midapi_async._wire.protocol import (
    CLOCK_SKEW,
    REFUSING_CODES,
    AnotherTask,
    Answer,
    Callback,
    Unsure,
    failure,
    fits,
    has_other_prompt,
    is_foreign_page,
    is_retryable,
    proves_refusal,
    read_callback,
    read_credits,
    read_data,
    read_look,
    read_submit,
    read_url,
    retry_after,
    submit_call,
)
from midapi_async._wire.records import read_record
from midapi_async._wire.tokens import has_token, new_token, token_hash
from midapi_async.errors import (
    APIError,
    AuthenticationError,
    BadRequestError,
    FeatureDisabledError,
    GenerationFailedError,
    InsufficientCreditsError,
    MaintenanceError,
    MidAPIError,
    NotFoundError,
    PromptRefusedError,
    PromptRejected,
    ProtocolError,
    RateLimitError,
    ServerError,
    SpendingCapError,
    TaskFailed,
    UnprocessableError,
)
from midapi_async.requests import (
    ExtendVideo,
    ImageToImage,
    ImageToVideo,
    OmniReference,
    Request,
    StyleReference,
    TextToImage,
    Upscale,
    Vary,
)
from midapi_async.tasks import TaskDetails
from tests.support import secrets

TASK = "0f3a9c52047dda21bb3df0488736cce5"
OTHER = "1111111111111111111111111111111f"
TOKEN = "mjt_" + "0aZ_-" * 8 + "xyz"  # the same in every run, as it stands in names of tests
CALLBACK = f"https://bot.example/hook/{TOKEN}"
URLS = [f"https://tempfile.aiquickdraw.com/m/{TASK}_0_{n}.jpeg" for n in range(4)]
PICTURE = "https://files.example/a.png"
NO_CREDITS = (
    "Credits insufficient : Your current balance isn't enough to run this request. "
    "Please top up to continue."
)
HTML = b"<!doctype html><title>502 Bad Gateway</title>"
NOW = 1_760_608_373.0


def body(code: object, data: object = None, msg: object = "said so") -> bytes:
    """An envelope of MidAPI's."""
    return json.dumps({"code": code, "msg": msg, "data": data}, separators=(",", ":")).encode()


GOOD = body(200, {"taskId": TASK}, "success")


def answer(status: int, text: bytes, flaw: str | None = None, **headers: str) -> Answer:
    """What came back."""
    return Answer(status, {name.replace("_", "-"): v for name, v in headers.items()}, text, flaw)


# ─── calls ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("request_", "path"),
    [
        (TextToImage("x"), "/api/v1/mj/generate"),
        (ImageToImage("x", [PICTURE]), "/api/v1/mj/generate"),
        (StyleReference("x", [PICTURE]), "/api/v1/mj/generate"),
        (OmniReference("x", [PICTURE]), "/api/v1/mj/generate"),
        (ImageToVideo("x", [PICTURE]), "/api/v1/mj/generate"),
        (Upscale(TASK, 0), "/api/v1/mj/generateUpscale"),
        (Vary(TASK, 0), "/api/v1/mj/generateVary"),
        (ExtendVideo(TASK, 0), "/api/v1/mj/generateVideoExtend"),
    ],
)
def test_each_request_goes_to_its_path(request_: Request, path: str) -> None:
    """With its callback URL in the body, which the repr does not show."""
    call = submit_call(request_, CALLBACK)
    assert ("POST", path) == (call.method, call.path)
    assert json.loads(call.body or b"")["callBackUrl"] == CALLBACK
    secrets.assert_none_in(call)
    assert "callBackUrl" not in json.loads(submit_call(request_, None).body or b"")


# ─── what an answer means ────────────────────────────────────────────────────────────────────────

# Section 7, literally: code, class, is a submit so answered refused, may it be sent again.
TABLE: list[tuple[int, type[APIError], bool, bool]] = [
    (400, BadRequestError, True, False),
    (401, AuthenticationError, True, False),
    (402, InsufficientCreditsError, True, False),
    (404, NotFoundError, True, False),
    (422, UnprocessableError, True, False),
    (429, RateLimitError, True, True),
    (433, SpendingCapError, True, False),
    (455, MaintenanceError, True, True),
    (500, ServerError, False, False),
    (501, GenerationFailedError, True, False),
    (505, FeatureDisabledError, True, False),
    # and codes that are in no table
    (0, APIError, False, False),
    (-1, APIError, False, False),
    (201, APIError, False, False),
    (403, APIError, False, False),
    (408, APIError, False, False),
    (502, ServerError, False, False),
    (503, ServerError, False, False),
    (504, ServerError, False, False),
    (999, APIError, False, False),
]


def outcome_of(given_answer: Answer) -> str | Exception:
    """The task id that answers a submit, or the error."""
    try:
        return read_submit(given_answer)
    except (APIError, Unsure) as error:
        return error


@pytest.mark.fault("S7")
@pytest.mark.fault("S8")
@pytest.mark.fault("S9")
@pytest.mark.parametrize("as_text", [False, True], ids=["int", "str"])
@pytest.mark.parametrize(("code", "kind", "refused", "again"), TABLE)
def test_each_code_inside_http_200(
    code: int, kind: type[APIError], refused: bool, again: bool, as_text: bool
) -> None:
    """Its own error; only a code of the table proves that nothing was bought."""
    text = body(str(code) if as_text else code)
    with pytest.raises(APIError) as caught:
        read_data(answer(200, text))
    error = caught.value
    assert (kind, code, "said so", 200) == (
        type(error),
        error.code,
        error.message,
        error.http_status,
    )
    assert error.own_envelope
    assert (proves_refusal(error, {}), is_retryable(error)) == (refused, again)
    outcome = outcome_of(answer(200, text))
    assert kind is type(outcome) if refused else isinstance(outcome, Unsure)


@pytest.mark.fault("S8")
@pytest.mark.fault("S9")
@pytest.mark.parametrize(
    ("code", "kind", "refused", "again"), [row for row in TABLE if 400 <= row[0] <= 599]
)
def test_each_code_as_a_real_status(
    code: int, kind: type[APIError], refused: bool, again: bool
) -> None:
    """The same as a real HTTP status: in MidAPI's envelope only its code counts."""
    with pytest.raises(APIError) as caught:
        read_data(answer(code, body(code)))
    assert (kind, code, code) == (type(caught.value), caught.value.code, caught.value.http_status)
    assert (proves_refusal(caught.value, {}), is_retryable(caught.value)) == (refused, again)
    outcome = outcome_of(answer(code, body(code)))
    assert kind is type(outcome) if refused else isinstance(outcome, Unsure)


@pytest.mark.fault("S9")
@pytest.mark.fault("S22")
@pytest.mark.fault("P7")
@pytest.mark.parametrize(
    "page", [HTML, b"", b"{}", b"null", b"\xff", b"[" * 100_000, b'"x"', body(200)]
)
@pytest.mark.parametrize(
    ("status", "refused"),
    [
        (400, False),
        (401, True),
        (403, False),
        (404, False),
        (407, True),
        (408, False),
        (413, False),
        (429, True),
        (499, False),
        (500, False),
        (501, False),
        (502, False),
        (503, False),
        (504, False),
        (505, False),
        (511, False),
        (522, False),
        (599, False),
    ],
)
def test_a_page_that_is_not_midapis(status: int, refused: bool, page: bytes) -> None:
    """The page of a proxy or a firewall proves nothing, except before a request is processed."""
    with pytest.raises(APIError) as caught:
        read_data(answer(status, page))
    assert status == caught.value.code == caught.value.http_status
    assert not caught.value.own_envelope
    assert proves_refusal(caught.value, {}) is refused
    outcome = outcome_of(answer(status, page))
    assert isinstance(outcome, APIError if refused else Unsure)
    assert not is_retryable(caught.value)


@pytest.mark.fault("S22")
@pytest.mark.parametrize(
    ("status", "refused"), [(403, True), (404, True), (408, True), (503, False), (200, False)]
)
def test_a_challenge_of_a_cdn_is_a_refusal(status: int, refused: bool) -> None:
    """It says in its headers that it came before the request was passed on."""
    outcome = outcome_of(answer(status, HTML, cf_mitigated="challenge"))
    assert isinstance(outcome, APIError if refused else Unsure)
    if isinstance(outcome, APIError):
        assert "challenge" in outcome.message
        assert not is_retryable(outcome)


@pytest.mark.parametrize(
    ("page", "headers", "expected"),
    [
        (b"oops", {}, "a page that is not MidAPI's"),
        (b"", {"Server": "nginx/1.25"}, "a page that is not MidAPI's, of nginx/1.25"),
        (
            b"<html><head><TITLE lang=de>\n Bitte  anmelden &amp; weiter\x1b[2J</title>",
            {"Server": "Portal"},
            "a page that is not MidAPI's, of Portal, titled 'Bitte anmelden & weiter [2J'",
        ),
        (b"<title>x</title>", {"cf-mitigated": "challenge"}, "a challenge page of Cloudflare"),
    ],
)
def test_a_foreign_page_is_named(page: bytes, headers: dict[str, str], expected: str) -> None:
    """So that its reader knows whom to ask; nothing of it can disturb a log."""
    for status in (403, 502, 200):
        outcome = outcome_of(Answer(status, headers, page))
        text = str(outcome)
        assert expected in text
        assert text.isprintable()


@pytest.mark.fault("S22")
@pytest.mark.parametrize(
    ("status", "page", "headers", "foreign"),
    [
        (403, HTML, {}, True),
        (401, HTML, {}, True),
        (429, HTML, {}, True),
        (429, HTML, {"Retry-After": "5"}, False),
        (404, body(200), {}, True),
        (500, HTML, {}, False),
        (404, body(404), {}, False),
    ],
)
def test_foreign_pages_are_recognized(
    status: int, page: bytes, headers: dict[str, str], foreign: bool
) -> None:
    """A 4xx that MidAPI did not write, unless it only asks to wait."""
    outcome = outcome_of(answer(status, page, **headers))
    error = outcome.__cause__ if isinstance(outcome, Unsure) else outcome
    assert isinstance(error, APIError)
    assert is_foreign_page(error) is foreign


@pytest.mark.fault("P7")
@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308, 399])
@pytest.mark.parametrize("page", [HTML, GOOD, body(402)])
def test_a_redirect_is_not_midapis(status: int, page: bytes) -> None:
    """Whatever its body says; a submit so answered is unknown."""
    with pytest.raises(ProtocolError, match="redirect"):
        read_data(answer(status, page))
    assert isinstance(outcome_of(answer(status, page)), Unsure)
    assert isinstance(outcome_of(answer(status, page, "cut")), Unsure)


@pytest.mark.fault("S9")
@pytest.mark.parametrize(
    ("status", "code", "text", "refused"),
    [
        (200, 500, NO_CREDITS, True),
        (500, 500, NO_CREDITS, True),
        (500, 500, NO_CREDITS.upper(), True),
        (500, 200, NO_CREDITS, False),
        (502, 500, NO_CREDITS, True),
        (200, 500, "Your current balance isn't enough", True),
        (200, 500, "Internal error", False),
        (200, 500, None, False),
        (200, 503, NO_CREDITS, False),
        (200, 999, NO_CREDITS, False),
    ],
)
def test_no_credits_as_500(status: int, code: int, text: str | None, refused: bool) -> None:
    """Once the text of 402 came with code 500; then, and only then, 500 is a refusal."""
    outcome = outcome_of(answer(status, body(code, None, text)))
    assert isinstance(outcome, InsufficientCreditsError if refused else Unsure)


@pytest.mark.fault("S9")
def test_the_credits_text_on_a_page_of_a_proxy_proves_nothing() -> None:
    """Only MidAPI's own envelope does."""
    for page in (NO_CREDITS.encode(), f"<html>{NO_CREDITS}".encode()):
        assert isinstance(outcome_of(answer(500, page)), Unsure)


@pytest.mark.parametrize("data", [None, 5.5, "x", [], {"a": [1]}])
def test_a_good_answer_is_its_data(data: object) -> None:
    """Any 2xx with code 200."""
    for status in (200, 201, 202):
        assert read_data(answer(status, body(200, data))) == data
        assert read_data(answer(status, body("200", data))) == data


@pytest.mark.fault("I5")
def test_text_of_a_server_in_an_error_is_made_harmless() -> None:
    """Newlines, ESC, a token and a mebibyte of it stay out of the error."""
    text = f"first\nsecond\x1b[2J\u202e {CALLBACK} " + "x" * (1 << 20)
    with pytest.raises(BadRequestError) as caught:
        read_data(answer(200, body(400, None, text)))
    secrets.assert_none_in(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 700


# ─── Retry-After ─────────────────────────────────────────────────────────────────────────────────


def in_(seconds: float) -> str:
    """An HTTP date some seconds from now."""
    return format_datetime(datetime.fromtimestamp(NOW + seconds, UTC), usegmt=True)


@pytest.mark.fault("S5")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0.0),
        ("7", 7.0),
        (" 7 ", 7.0),
        ("007", 7.0),
        ("1000000000", 1e9),
        (in_(90), 90.0),
        (in_(-90), 0.0),
        (in_(0), 0.0),
        (in_(90).replace("GMT", "+0000"), 90.0),
        ("", None),
        ("-7", None),
        ("+7", None),
        ("7.5", None),
        ("1e3", None),
        ("1_0", None),
        ("٣", None),
        ("²", None),
        ("0x10", None),
        ("7 s", None),
        ("7, 8", None),
        ("soon", None),
        ("NaN", None),
        ("inf", None),
        ("9" * 5000, None),
        ("x" * 100_000, None),
        ("Wed, 21 Oct 99999999 07:28:00 GMT", None),
        ("Wed, 99 Oct 2025 07:28:00 GMT", None),
        ("Wed, 21 Oct 2025 07:28:00 +999999", None),
        ("\ud800", None),
    ],
)
def test_every_retry_after(text: str, expected: float | None) -> None:
    """Seconds or a date; a date that is over is now; garbage is ignored."""
    assert retry_after({"Retry-After": text, "Date": in_(0)}) == expected


@pytest.mark.fault("S6")
def test_no_retry_after() -> None:
    """MidAPI sends none."""
    assert retry_after({}) is None
    assert retry_after({"Date": in_(0)}) is None


@pytest.mark.fault("S31")
@pytest.mark.parametrize("date", [None, "", "soon"])
def test_a_date_is_measured_by_the_servers_clock(date: str | None) -> None:
    """Ours may be hours wrong; it is used only if the server does not say its own."""
    assert retry_after({"Retry-After": in_(90), "Date": in_(0)}) == 90.0
    headers = {} if date is None else {"Date": date}
    assert retry_after(headers | {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0
    far = retry_after(headers | {"Retry-After": "Wed, 21 Oct 9998 07:28:00 GMT"})
    assert far is not None
    assert far > 1e9


@pytest.mark.fault("S5")
@hypothesis_settings(deadline=None)
@given(
    st.text(st.characters(exclude_categories=())) | st.text("0123456789 :,+-GMTWedOct", max_size=40)
)
def test_any_retry_after_is_a_wait_or_none(text: str) -> None:
    """Never an error, never negative, never NaN."""
    found = retry_after({"Retry-After": text, "Date": in_(0)})
    assert found is None or found >= 0


@pytest.mark.fault("S5")
@pytest.mark.fault("S7")
@pytest.mark.parametrize(
    ("status", "text"),
    [(429, HTML), (429, body(429)), (200, body(429)), (429, body(200)), (503, body(429))],
)
def test_a_rate_limit_carries_it(status: int, text: bytes) -> None:
    """Inside HTTP 200, as a real status and on somebody else's page: it may be sent again."""
    outcome = outcome_of(answer(status, text, Retry_After="30"))
    assert isinstance(outcome, RateLimitError)
    assert is_retryable(outcome)
    assert outcome.retry_after == 30.0


@pytest.mark.fault("S5")
def test_a_cut_rate_limit_carries_it_too() -> None:
    """The headers came before the cut."""
    outcome = outcome_of(answer(429, b'{"code":42', "cut", Retry_After="30"))
    assert isinstance(outcome, RateLimitError)
    assert outcome.retry_after == 30.0
    assert is_retryable(outcome)


# ─── the answer to a submit ──────────────────────────────────────────────────────────────────────


@pytest.mark.fault("S1")
@pytest.mark.parametrize(
    ("status", "text"),
    [
        (200, GOOD),
        (200, b"\xef\xbb\xbf" + GOOD),
        (200, b" \n" + GOOD + b"\n"),
        (201, GOOD),
        (200, body("200", {"taskId": TASK})),
        (200, body(200, {"taskId": TASK}, None)),
        (200, body(200, json.dumps({"taskId": TASK}))),
        (200, body(200, {"taskId": TASK, "new": [{"taskId": OTHER}]})),
        # code 200 inside an HTTP error was paid for all the same
        (500, GOOD),
        (502, GOOD),
        (429, GOOD),
        (404, GOOD),
        (500, body(200, json.dumps({"taskId": TASK}))),
    ],
)
def test_a_task_id_answers_a_submit(status: int, text: bytes) -> None:
    """In each documented shape, and whatever the HTTP status."""
    assert read_submit(answer(status, text)) == TASK


@pytest.mark.fault("S10")
@pytest.mark.parametrize(
    "data",
    [
        None,
        {},
        [],
        5,
        "",
        TASK,
        [{"taskId": TASK}],
        {"taskid": TASK},
        {"task_id": TASK},
        *(
            {"taskId": bad}
            for bad in (
                *(None, "", 5, True, [TASK], {"id": TASK}),
                *(
                    "x" * 129,
                    "x" * 10_000,
                    "../x",
                    "a/b",
                    "a\nb",
                    "a b",
                    "x\n",
                    "é",
                    "\ud800",
                    TOKEN,
                ),
            )
        ),
    ],
    ids=lambda data: repr(data)[:40],
)
def test_a_success_without_a_usable_id_is_unknown(data: object) -> None:
    """Missing, empty, not a str, 10 kB, a path, a newline: never an id, never a refusal."""
    for status in (200, 500):
        outcome = outcome_of(answer(status, body(200, data)))
        assert isinstance(outcome, Unsure)
        assert str(outcome).isprintable()
        secrets.assert_none_in(outcome)


@pytest.mark.fault("S11")
@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" ",
        HTML,
        b"OK",
        b"null",
        b"[]",
        TASK.encode(),
        b'{"data":{"taskId":"' + TASK.encode() + b'"}}',
        GOOD[:-1],
        GOOD + b"x",
        GOOD + GOOD,
        GOOD.decode().encode("utf-16"),
        b"\xff" + GOOD,
        GOOD.replace(b"200", b"NaN"),
        GOOD.replace(b"200", b"200.0"),
        GOOD.replace(b"200", b"true"),
        GOOD.replace(b"}}", b',"x":NaN}}'),
        GOOD.replace(b"}}", b',"x":1e999}}'),
        GOOD.replace(b"}}", b',"taskId":"' + OTHER.encode() + b'"}}'),
        GOOD.replace(b"}}", b'},"code":500}'),
        GOOD.replace(b"}}", b',"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}}"),
        GOOD.replace(b"}}", b',"x":' + b"1" * 5000 + b"}}"),
        b"[" * 100_000,
        b'{"code":200,"msg":5,"data":{"taskId":"' + TASK.encode() + b'"}}',
    ],
    ids=lambda text: repr(text)[:40],
)
def test_garbage_is_unknown(text: bytes) -> None:
    """No JSON, cut, deep, doubled names, NaN, UTF-16: it cannot be known."""
    assert isinstance(outcome_of(answer(200, text)), Unsure)


SUBMITS = [
    GOOD,
    b' { "code" : 200 , "msg" : "success" , "data" : { "taskId" : "' + TASK.encode() + b'" } } ',
    body("200", {"a": {"b": [1, "}"]}, "taskId": TASK, "z": [{}]}, 'taskId\\": "x" 狐'),
    b'{"data":{"taskId":"' + TASK.encode() + b'"},"code":200}',
    b"\xef\xbb\xbf" + GOOD,
]


@pytest.mark.fault("S11")
@pytest.mark.parametrize("status", [200, 500, 429, 408, 400])
@pytest.mark.parametrize("whole", SUBMITS, ids=range(len(SUBMITS)))
def test_an_accepted_answer_cut_at_every_byte(whole: bytes, status: int) -> None:
    """The id is read only when it is complete; never another one; a refusal only of a 4xx."""
    end = whole.index(TASK.encode()) + len(TASK) + 1
    code_comes_first = whole.index(b'"code"') < end
    for place in range(len(whole) + 1):
        outcome = outcome_of(answer(status, whole[:place], "its answer was cut short"))
        if place >= end and code_comes_first:
            assert outcome == TASK
        elif status == 429:
            assert isinstance(outcome, RateLimitError)
        else:
            assert isinstance(outcome, Unsure), (place, outcome)


@pytest.mark.fault("S11")
@pytest.mark.parametrize(
    "whole",
    [
        body(500, None),
        body(429, None),
        body(402, {"taskId": TASK}, NO_CREDITS),
        body(500, {"taskId": TASK}),
        body(200, {"request": {"taskId": OTHER, "imageIndex": 0}, "taskId": TASK}),
        body(200, [{"taskId": OTHER}]),
        body(200, {"parent": {"taskId": OTHER}}),
        body(200, {"taskId": [OTHER]}),
        b'{"code":200,"taskId":"' + OTHER.encode() + b'","data":{}}',
        b'{"code":200,"data":{"taskId":"'
        + TASK.encode()
        + b'","taskId":"'
        + OTHER.encode()
        + b'"}}',
        b'{"code":200,"data":{"taskId":"' + TASK.encode() + b'"},"code":500}',
        b'{"code":200,"data":{"taskId":"../x"}}',
        b'{"code":200,"data":{"taskId":"' + b"x" * 129 + b'"}}',
        b'<p>{"taskId":"' + OTHER.encode() + b'"}</p>',
        b'{"error":"bad gateway","request":{"taskId":"' + OTHER.encode() + b'"}}',
        b'{"code":200,"error":"?","request":{"taskId":"' + OTHER.encode() + b'","x":1}}',
        b'{"code":502,"request":{"code":200,"data":{"taskId":"' + OTHER.encode() + b'"}}}',
        HTML,
    ],
    ids=lambda text: repr(text)[:50],
)
@pytest.mark.parametrize("status", [200, 500, 502, 408])
def test_any_other_answer_cut_at_every_byte(whole: bytes, status: int) -> None:
    """No id that stands elsewhere, such as an echo of our own request's; no unproven refusal.

    Of a body whose two ids are both at the right place only the first is known before the second
    has come.
    """
    for place in range(len(whole) + 1):
        outcome = outcome_of(answer(status, whole[:place], "its answer was cut short"))
        assert outcome != OTHER
        if isinstance(outcome, str):
            assert outcome == TASK
            assert whole.startswith(b'{"code":200,"data":{"taskId"')
        else:
            assert isinstance(outcome, Unsure)


@pytest.mark.fault("S11")
@pytest.mark.parametrize(
    "behind",
    [
        f',"taskId":"{OTHER}"',
        f',"taskId":"{OTHER}"}},',
        f'}},"data":{{"taskId":"{OTHER}"',
        '},"code":500,',
        '},"code": "500"',
        '},"code":-1}',
    ],
)
def test_a_cut_answer_that_contradicts_itself_is_unknown(behind: str) -> None:
    """A second id or another code behind the first: it cannot be known which one counts."""
    text = f'{{"code":200,"data":{{"taskId":"{TASK}"'.encode()
    assert outcome_of(answer(200, text, "cut")) == TASK
    assert isinstance(outcome_of(answer(200, text + behind.encode(), "cut")), Unsure)


@pytest.mark.fault("S10")
@pytest.mark.parametrize("data", [None, {}, {"taskId": None}, "no"])
def test_the_reason_says_that_the_answer_names_no_task(data: object) -> None:
    """Code 200 is no error of MidAPI's, and must not be shown as one."""
    with pytest.raises(Unsure, match="names no task"):
        read_submit(answer(200, body(200, data)))


@pytest.mark.fault("S11")
@pytest.mark.parametrize("status", [200, 501, 505])
def test_a_cut_answer_with_an_id_elsewhere_is_unknown(status: int) -> None:
    """It is not where MidAPI puts it; and what is left of a body proves no refusal."""
    text = b'{"code":200,"task":{"taskId":"' + TASK.encode() + b'"'
    with pytest.raises(Unsure):
        read_submit(answer(status, text, "cut"))


@pytest.mark.fault("S9")
@pytest.mark.parametrize("flaw", [None, "cut"])
@pytest.mark.parametrize("code", [0, 201, 402, 500, 501, 999])
def test_an_id_beside_an_error_is_no_acceptance(code: int, flaw: str | None) -> None:
    """Only code 200 is; the codes of the table stay refusals, all else is unknown."""
    outcome = outcome_of(answer(200, body(code, {"taskId": TASK}), flaw))
    refused = code in (402, 501) and flaw is None
    assert isinstance(outcome, APIError if refused else Unsure)


@pytest.mark.fault("S9")
@pytest.mark.parametrize("status", [500, 502, 408, 404, 429])
def test_an_echo_of_our_request_is_no_answer(status: int) -> None:
    """A proxy's page that shows what was sent shows the parent's task id: it was not bought."""
    for echo in (
        {"error": "bad gateway", "request": {"taskId": OTHER, "imageIndex": 0}},
        {"taskId": OTHER, "imageIndex": 0},
        {"detail": [{"loc": ["body"], "input": {"taskId": OTHER}}]},
    ):
        for flaw in (None, "cut"):
            outcome = outcome_of(answer(status, json.dumps(echo).encode(), flaw))
            assert outcome != OTHER
            assert isinstance(outcome, APIError if status == 429 else Unsure)


@pytest.mark.fault("S11")
def test_many_ids_are_read_in_one_pass() -> None:
    """A mebibyte of ids is looked at once, not once for each."""
    many = b'{"code":200,"data":[' + b'{"taskId":"x"},' * 70_000
    assert isinstance(outcome_of(answer(200, many, "cut")), Unsure)


@pytest.mark.fault("S11")
@hypothesis_settings(deadline=None, max_examples=300)
@given(
    st.integers(100, 699),
    st.binary(max_size=60)
    | st.text(st.sampled_from('{}[]":,0129.eE-\\ taskIdcodedatamsg200\ud800')).map(
        lambda text: text.encode("utf-8", "surrogatepass")
    )
    | st.builds(body, st.integers(-5, 600) | st.text(), st.none() | st.text() | st.booleans())
    | st.binary(max_size=20).map(lambda junk: GOOD[:30] + junk + GOOD[30:]),
    st.none() | st.just("cut"),
    st.dictionaries(st.just("Retry-After"), st.text()),
)
def test_any_answer_has_one_of_three_outcomes(
    status: int, text: bytes, flaw: str | None, headers: Mapping[str, str]
) -> None:
    """An id, a proven refusal, or neither; and to look, a value or one of two errors."""
    given_answer = Answer(status, headers, text, flaw)
    outcome = outcome_of(given_answer)
    if isinstance(outcome, APIError):
        assert proves_refusal(outcome, headers)
        assert status in (401, 407, 429) or (
            outcome.own_envelope and outcome.code in REFUSING_CODES
        )
    elif isinstance(outcome, str):
        assert b'"' + outcome.encode() + b'"' in text.replace(b"\\", b"")
    for reader in (read_data, read_credits, read_url, lambda it: read_look(it, TASK)):
        try:
            reader(given_answer)
        except (APIError, ProtocolError) as error:
            assert_one_line(error)


def assert_one_line(error: MidAPIError) -> None:
    """It can be logged as it is."""
    assert str(error).isprintable()
    assert len(str(error)) < 1000


def test_the_tables_agree() -> None:
    """What may be sent again is a refusal; the sets are those of the wire document."""
    assert {code for code, _, refused, _ in TABLE if refused} == REFUSING_CODES
    assert {code for code, _, _, again in TABLE if again} == {429, 455}


def test_an_answer_shows_nothing_of_its_body() -> None:
    """Its repr may stand in a log."""
    secrets.assert_none_in(answer(200, CALLBACK.encode(), Location=CALLBACK))


# ─── looks ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.fault("P1")
@pytest.mark.parametrize(
    ("status", "text"),
    [
        (200, body(200, None)),
        (200, body(200, "null")),
        (200, body(200, "")),
        (200, body(404, None, "Task not found")),
        (404, body(404, None, "Task not found")),
        (200, body(422, None, "recordInfo is null")),
        (422, body(422, None, "recordInfo is null")),
        (200, body("422", None, "recordInfo is null")),
    ],
)
def test_midapi_does_not_know_the_task(status: int, text: bytes) -> None:
    """Each way in which it says so: no error, the task may be too new."""
    assert read_look(answer(status, text), TASK) is None


@pytest.mark.fault("P7")
@pytest.mark.parametrize("status", [404, 422])
def test_a_404_page_of_a_proxy_is_not_midapis(status: int) -> None:
    """Only MidAPI's own envelope says that a task is unknown."""
    with pytest.raises(APIError) as caught:
        read_look(answer(status, HTML), TASK)
    assert not caught.value.own_envelope


def test_a_look_gives_the_record_and_its_data() -> None:
    """Also where the data is a string."""
    data = {"taskId": TASK, "successFlag": 0}
    for sent in (data, json.dumps(data)):
        record = read_look(answer(200, body(200, sent)), TASK)
        assert record is not None
        assert (record.task_id, record.raw, record.is_plain) == (TASK, data, True)


@pytest.mark.fault("P16")
@pytest.mark.parametrize("status", [404, 500, 502])
def test_a_record_counts_whatever_a_proxy_made_of_the_status(status: int) -> None:
    """Its code is 200, so no text of the answer is a reason of MidAPI's."""
    for flag in (1, 2, 3):
        data = {"taskId": TASK, "successFlag": flag, "resultUrls": URLS}
        record = read_look(answer(status, body(200, data)), TASK)
        assert record is not None
        assert (record.success_flag, record.error_code, record.error_message) == (flag, None, None)
    with pytest.raises(APIError):
        read_look(answer(status, body(200, {"taskId": TASK, "successFlag": 0})), TASK)


@pytest.mark.fault("P6")
def test_a_record_about_another_task_is_refused() -> None:
    """Also one whose id differs in case only."""
    for other in (OTHER, TASK.upper(), TASK + "0"):
        with pytest.raises(ProtocolError, match=r"data\.taskId"):
            read_look(answer(200, body(200, {"taskId": other, "successFlag": 1})), TASK)
        with pytest.raises(AnotherTask):  # also inside an error
            read_look(answer(200, body(501, {"taskId": other, "successFlag": 3})), TASK)


@pytest.mark.fault("P7")
@pytest.mark.parametrize(
    ("text", "flaw"),
    [(HTML, None), (b"", None), (body(200, []), None), (body(200, 5), None), (GOOD, "cut")],
)
def test_a_page_or_a_cut_record_is_refused(text: bytes, flaw: str | None) -> None:
    """Nothing of a cut body is believed, however whole it looks."""
    with pytest.raises(ProtocolError):
        read_look(answer(200, text, flaw), TASK)


@pytest.mark.fault("P11")
def test_a_401_says_whether_midapi_wrote_it() -> None:
    """The tracker ends all waits only on MidAPI's own word."""
    for text, own in ((body(401), True), (HTML, False), (b"{}", False)):
        with pytest.raises(AuthenticationError) as caught:
            read_look(answer(401, text), TASK)
        assert own is caught.value.own_envelope


# ─── credits and links ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("data", "expected"), [(0, 0.0), (5, 5.0), (12.5, 12.5), (-3, -3.0)])
def test_credits_are_a_number(data: object, expected: float) -> None:
    """It may be fractional; it is a float."""
    found = read_credits(answer(200, body(200, data)))
    assert found == expected
    assert float is type(found)


@pytest.mark.parametrize(
    "data", ["null", "true", '"5"', "[5]", '{"credits": 5}', "1e999", "1" * 400, "1" * 5000, "NaN"]
)
def test_credits_of_another_kind_are_refused(data: str) -> None:
    """None is not 0, "5" is not 5, and what no float can hold is an error of ours."""
    with pytest.raises(ProtocolError):
        read_credits(answer(200, f'{{"code":200,"data":{data}}}'.encode()))


def test_a_link_is_a_url() -> None:
    """Given back as it is."""
    assert URLS[0] == read_url(answer(200, body(200, URLS[0])))


@pytest.mark.parametrize(
    "data", [None, 5, "", "x", "file:///x", "https://", "https://h\nx", [URLS[0]]]
)
def test_what_is_not_a_url_is_not_a_link(data: object) -> None:
    """Also one that cannot be shown or asked for."""
    with pytest.raises(ProtocolError) as caught:
        read_url(answer(200, body(200, data)))
    assert caught.value.path == "data"


# ─── callbacks ───────────────────────────────────────────────────────────────────────────────────

DONE = {"taskId": TASK, "promptJson": "{}", "resultUrls": URLS}


@pytest.mark.fault("C1")
@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({"code": 200, "msg": "success", "data": DONE}, Callback(TASK, is_acknowledgement=False)),
        (
            {"code": 500, "msg": "failed", "data": {"taskId": TASK, "resultUrls": []}},
            Callback(TASK, is_acknowledgement=False),
        ),
        # one sign of a result is enough
        *(
            (
                {"code": 200, "data": {"taskId": TASK, name: value}},
                Callback(TASK, is_acknowledgement=False),
            )
            for name, value in (("resultInfoJson", "{}"), ("resultUrls", []), ("successFlag", 1))
        ),
        # the acknowledgement that comes before the real one
        (
            {"code": 200, "data": {"taskId": TASK, "promptJson": "{}"}},
            Callback(TASK, is_acknowledgement=True),
        ),
        ({"code": "200", "data": {"taskId": TASK}}, Callback(TASK, is_acknowledgement=True)),
        ({"taskId": TASK}, Callback(TASK, is_acknowledgement=True)),
        ({"code": 500, "data": {"taskId": TASK}}, Callback(TASK, is_acknowledgement=False)),
        ({"code": [200], "data": {"taskId": TASK}}, Callback(TASK, is_acknowledgement=False)),
        # record-info-like, of a video extension
        (
            {
                "code": 200,
                "data": {
                    "taskId": TASK,
                    "successFlag": 1,
                    "resultInfoJson": "{}",
                    "errorCode": "x",
                },
            },
            Callback(TASK, is_acknowledgement=False),
        ),
        # the four places of the task id, and data as a string
        ({"code": 200, "data": {"task_id": TASK}}, Callback(TASK, is_acknowledgement=True)),
        ({"code": 200, "taskId": TASK, "data": None}, Callback(TASK, is_acknowledgement=True)),
        ({"code": 200, "task_id": TASK}, Callback(TASK, is_acknowledgement=True)),
        ({"code": 200, "data": json.dumps(DONE)}, Callback(TASK, is_acknowledgement=False)),
        ({"data": {"taskId": TASK}, "taskId": OTHER}, Callback(TASK, is_acknowledgement=True)),
        ({"data": {"taskId": None, "task_id": TASK}}, Callback(TASK, is_acknowledgement=True)),
    ],
)
def test_every_shape_of_a_callback(sent: object, expected: Callback) -> None:
    """The task id, and whether there is more to look for; nothing else is believed."""
    assert read_callback(json.dumps(sent).encode()) == expected


@pytest.mark.fault("C12")
@pytest.mark.parametrize(
    "text",
    [
        b"",
        HTML,
        b"null",
        b"[]",
        b"5",
        b"{}",
        b'{"data":{}}',
        b'{"data":{"taskId":5}}',
        b'{"data":{"taskId":"../x"}}',
        b'{"data":{"taskId":"' + b"x" * 129 + b'"}}',
        b'{"data":{"taskId":"' + TOKEN.encode() + b'"}}',
        b'{"data":[{"taskId":"x"}]}',
        b'{"taskId":"x","taskId":"y"}',
        b'{"taskId":"x","n":NaN}',
        b'{"data":' * 100_000,
        b'{"taskId":"x","d":' + b"[" * 65 + b"]" * 65 + b"}",
        '{"taskId":"x"}'.encode("utf-16"),
    ],
    ids=lambda text: repr(text)[:40],
)
def test_what_is_not_a_callback_is_refused(text: bytes) -> None:
    """Deep, doubled, cut or of another kind: a `ProtocolError`, which the receiver makes a 400."""
    with pytest.raises(ProtocolError) as caught:
        read_callback(text)
    secrets.assert_none_in(caught.value)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.fault("P15")
@hypothesis_settings(deadline=None)
@given(
    st.sampled_from(["data", "text", "snake", "outside"]),
    st.dictionaries(
        st.sampled_from(
            ["code", "msg", "resultUrls", "resultInfoJson", "successFlag", "promptJson"]
        )
        | st.sampled_from(["errorCode", "errorMessage", "createTime", "completeTime", "new"]),
        JSON,
    ),
)
def test_only_the_task_id_decides_whether_a_callback_can_be_read(
    shape: str, fields: dict[str, object]
) -> None:
    """Any JSON in any other field, outside or in the data: it is a hint for its task."""
    shapes: dict[str, dict[str, object]] = {
        "data": {"data": {**DONE, **fields}},
        "text": {"data": json.dumps({**DONE, **fields})},
        "snake": {"data": {"taskId": None, "task_id": TASK, **fields}},
        "outside": {"taskId": TASK, "data": fields.get("new")},
    }
    assert read_callback(json.dumps({**fields, **shapes[shape]}).encode()).task_id == TASK


@pytest.mark.fault("C12")
@hypothesis_settings(deadline=None)
@given(st.binary())
def test_any_bytes_are_a_callback_or_refused(text: bytes) -> None:
    """There is no third outcome."""
    try:
        assert read_callback(text).task_id
    except ProtocolError as error:
        assert_one_line(error)


# ─── failures, and records of lost submissions ───────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (None, TaskFailed),
        ("", TaskFailed),
        ("No response from MidJourney Official Website after multiple attempts.", TaskFailed),
        ("NSFW content", PromptRejected),
        ("Blocked by moderation", PromptRejected),
        ("sensitive words", PromptRejected),
        ("Safety filter", PromptRejected),
        ("against our Content Policy", PromptRejected),
        ("violates", PromptRejected),
        ("prohibited", PromptRejected),
        ("Banned prompt", PromptRejected),
    ],
)
def test_a_failure_is_judged_by_its_text(message: str | None, kind: type[TaskFailed]) -> None:
    """Each word that users' programs look for."""
    details = TaskDetails(task_id=TASK, error_message=message)
    error = failure(details)
    assert kind is type(error)
    assert (TASK, details) == (error.task_id, error.details)


POLICY = "Your prompt was flagged by Website as violating content policies"


@pytest.mark.fault("S8")
@pytest.mark.parametrize("is_real", [False, True], ids=["in-200", "as-status"])
@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        (400, POLICY, PromptRefusedError),
        (400, "The prompt is not allowed: NSFW", PromptRefusedError),
        (400, "Blocked by moderation", PromptRefusedError),
        (400, "Your prompt was flagged", PromptRefusedError),
        (422, POLICY, PromptRefusedError),
        (501, POLICY, PromptRefusedError),
        # nothing of it is about the prompt
        (400, "The speed parameter is incorrect.", BadRequestError),
        (400, "taskType is case-sensitive", BadRequestError),
        (422, "recordInfo is null", UnprocessableError),
        (501, "said so", GenerationFailedError),
        # codes with a meaning of their own
        (401, POLICY, AuthenticationError),
        (402, POLICY, InsufficientCreditsError),
        (429, "banned for a minute", RateLimitError),
        (505, "prohibited for this account", FeatureDisabledError),
        # no proof that nothing was bought
        (500, POLICY, Unsure),
        (451, POLICY, Unsure),
    ],
)
def test_a_refused_prompt_is_known_by_its_text(
    code: int, message: str, kind: type[Exception], is_real: bool
) -> None:
    """At submission only, with the codes for a wrong request; MidAPI's code is kept."""
    given_answer = answer(code if is_real else 200, body(code, msg=message))
    outcome = outcome_of(given_answer)
    assert type(outcome) is kind
    if isinstance(outcome, APIError):
        assert (outcome.code, outcome.message) == (code, message)
        assert outcome.http_status == given_answer.status
    if kind is PromptRefusedError:
        assert isinstance(outcome, BadRequestError)
        assert "Nothing was bought." in str(outcome)
    # A look is answered so for a task that was bought.
    with pytest.raises(APIError) as caught:
        read_data(given_answer)
    assert not isinstance(caught.value, PromptRefusedError)


def test_a_challenge_page_refuses_no_prompt() -> None:
    """Its title may contain such words, and MidAPI never saw the prompt."""
    page = b"<title>Safety check: prohibited</title>"
    outcome = outcome_of(answer(400, page, cf_mitigated="challenge"))
    assert type(outcome) is BadRequestError


@pytest.mark.parametrize("message", [POLICY, "NSFW", "prohibited"])
def test_a_prompt_is_refused_and_rejected_for_the_same_words(message: str) -> None:
    """One list for both, before and after the purchase."""
    assert isinstance(outcome_of(answer(200, body(400, msg=message))), PromptRefusedError)
    details = TaskDetails(task_id=TASK, error_message=message)
    assert isinstance(failure(details), PromptRejected)


SINCE = 1_760_608_306.0


def fitting(
    request: Request | None, members: Mapping[str, object], *, matches: bool | None = None
) -> bool:
    """Whether a record with these members fits."""
    record = read_record({"taskId": TASK, "createTime": int(SINCE * 1000), **members})
    assert record is not None
    return fits(record, request, callback_url_matches=matches, since=SINCE)


FOX = TextToImage("a fox")


@pytest.mark.fault("C23")
@pytest.mark.parametrize(
    ("request_", "members", "expected"),
    [
        (FOX, {}, True),
        (None, {}, True),
        (FOX, {"taskType": "mj_txt2img", "paramJson": '{"prompt": " a fox\\n"}'}, True),
        (FOX, {"taskType": "mj_img2img"}, False),
        (FOX, {"taskType": "MJ_TXT2IMG"}, False),
        # MidAPI may change a prompt; see `has_other_prompt`.
        (FOX, {"paramJson": '{"prompt": "a wolf"}'}, True),
        (FOX, {"paramJson": '{"prompt": null}'}, True),
        (FOX, {"paramJson": "{"}, True),
        (FOX, {"createTime": None}, True),
        (FOX, {"createTime": int((SINCE - CLOCK_SKEW) * 1000)}, True),
        (FOX, {"createTime": int((SINCE - CLOCK_SKEW) * 1000) - 1}, False),
        (FOX, {"createTime": int((SINCE + 86_400) * 1000)}, True),
        # A time that is not sure decides nothing.
        (FOX, {"createTime": "2020-01-01 00:00:00"}, True),
        (FOX, {"createTime": 5}, True),
        (FOX, {"createTime": "soon"}, True),
        # MidAPI does not document what it calls these two
        (Upscale(OTHER, 0), {"taskType": "anything"}, True),
        (Vary(OTHER, 0), {"taskType": "anything", "paramJson": '{"prompt": "x"}'}, True),
        (ExtendVideo(OTHER, 0), {"taskType": "mj_video_extend_auto"}, True),
        (ExtendVideo(OTHER, 0), {"taskType": "mj_video_extend_manual"}, False),
        (ExtendVideo(OTHER, 0, "on"), {"taskType": "mj_video_extend_manual"}, True),
        (ImageToVideo("x", [PICTURE], hd=True), {"taskType": "mj_video_hd"}, True),
        (ImageToVideo("x", [PICTURE]), {"taskType": "mj_video_hd"}, False),
        (TextToImage("x", extra={"taskType": "mj_new"}), {"taskType": "mj_new"}, True),
        (TextToImage("x", extra={"taskType": "mj_new"}), {"taskType": "mj_txt2img"}, False),
    ],
)
def test_type_and_time_must_fit(
    request_: Request | None, members: dict[str, object], expected: bool
) -> None:
    """Whatever the record shows must be what was submitted; what it does not show, need not."""
    assert expected is fitting(request_, members)


@pytest.mark.fault("C26")
@pytest.mark.parametrize(
    ("request_", "stored", "expected"),
    [
        (FOX, '{"prompt": " a fox\\n"}', False),
        (FOX, '{"prompt": "a fox --v 7"}', True),
        (FOX, '{"prompt": null}', False),
        (FOX, "{", False),
        (Vary(OTHER, 0), '{"prompt": "x"}', False),
        (None, '{"prompt": "x"}', False),
        (TextToImage("x", extra={"prompt": "a fox"}), '{"prompt": "a fox"}', False),
        (TextToImage("x", extra={"prompt": 5}), '{"prompt": "x"}', False),
    ],
)
def test_a_changed_prompt_is_noticed(request_: Request | None, stored: str, expected: bool) -> None:
    """Only where both prompts are known."""
    record = read_record({"taskId": TASK, "paramJson": stored})
    assert record is not None
    assert expected is has_other_prompt(record, request_)


# How MidAPI, or what stands before it, may store a prompt in another way than it was sent.
CHANGES: dict[str, Callable[[str], str]] = {
    "blanks collapsed": lambda prompt: " ".join(prompt.split()),
    "dashes": lambda prompt: prompt.replace("--", "\u2014"),
    "flags moved": lambda prompt: " ".join(sorted(prompt.split(), key=lambda it: it[:2] == "--")),
    "flags removed": lambda prompt: prompt.partition("--")[0],
    "HTML": html.escape,
    "HTML twice": lambda prompt: html.escape(html.escape(prompt)),
    "NFC": lambda prompt: unicodedata.normalize("NFC", prompt),
    "NFKD": lambda prompt: unicodedata.normalize("NFKD", prompt),
    "lower case": str.casefold,
    "cut": lambda prompt: prompt[:100],
    "cut in the middle of UTF-8": lambda prompt: prompt.encode()[:100].decode(errors="replace"),
    "ASCII": lambda prompt: prompt.encode("ascii", "replace").decode(),
    "a flag added": lambda prompt: f"{prompt} --v 7",
    "JSON in JSON": json.dumps,
    "nothing left": lambda _: "",
}
PROMPTS = st.text(min_size=1, max_size=150).filter(str.strip) | st.sampled_from(
    [
        "a  red\n fox --ar 16:9 -- v 7",
        "<b>fox</b> & wolf's",
        "\u212bngstro\u0308m \ufb01",
        "x" * 200,
    ]
)


@pytest.mark.fault("C26")
@given(PROMPTS, st.lists(st.sampled_from(sorted(CHANGES)), max_size=3), st.sampled_from("ulc"))
def test_a_prompt_that_was_changed_in_any_way_still_fits(
    prompt: str, changes: list[str], way: str
) -> None:
    """Type and time decide, or the token in the callback URL; also if the whole request is cut."""
    request_ = TextToImage(prompt.encode(errors="replace").decode())
    stored = request_.prompt
    for change in changes:
        stored = CHANGES[change](stored)
    ours, theirs = new_token(), new_token()
    url = f"https://me.example/hooks/{ours}"
    params = json.dumps(
        {"callBackUrl": url, "prompt": stored} if way == "u" else {"prompt": stored}
    )
    members: dict[str, object] = {
        "taskType": "mj_txt2img",
        "createTime": int(SINCE * 1000),
        "paramJson": params[:100] if way == "c" else params,
    }
    record = read_record({"taskId": TASK, **members})
    assert record is not None
    for token, expected in ((ours, True), (theirs, way != "u")):
        matches = has_token(record.params.get("callBackUrl"), token_hash(token))
        fitting_ = fits(record, request_, callback_url_matches=matches, since=SINCE)
        assert fitting_ is expected
    if way != "c":
        assert has_other_prompt(record, request_) is (stored.strip() != request_.prompt.strip())


@pytest.mark.fault("C23")
def test_a_callback_url_decides() -> None:
    """It holds our token, which nobody can guess; another one refuses the record."""
    assert fitting(FOX, {"taskType": "mj_img2img"}, matches=True)
    assert not fitting(FOX, {"taskType": "mj_txt2img"}, matches=False)


def test_nothing_else_is_public_here() -> None:
    """`Unsure` is no `MidAPIError`: it cannot escape as one, and says nothing of money."""
    assert not issubclass(_protocol.Unsure, MidAPIError)
