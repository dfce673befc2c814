"""What is shown in Discord: within its limits, without effect, in the operator's own words."""

from __future__ import annotations

import inspect
from typing import Any

import attrs
import discord
import pytest
from discord import ui
from hypothesis import given
from hypothesis import strategies as st

from midapi_async import (
    ExtendVideo,
    ImageToVideo,
    InsufficientCreditsError,
    InvalidRequestError,
    MidAPIError,
    OmniReference,
    Request,
    SubmissionUnknown,
    TaskDetails,
    TaskFailed,
    TaskStatus,
    TextToImage,
    Upscale,
    Vary,
    errors,
)
from midapi_async.errors import about
from midapi_async.integrations.discord import Strings, result_view
from midapi_async.integrations.discord.commands import commands_of
from midapi_async.integrations.discord.strings import DEFAULT, MOST_REASON, harmless
from midapi_async.integrations.discord.views import ResultButton, submitted_prompt, text_view
from tests.integrations.discord_stand_in import rules

TASK, INTENT, USER = "0f3a" * 8, "f" * 32, 2**64 - 1
URLS = tuple(f"https://files.example/{TASK}_0_{n}.jpeg" for n in range(4))
PICTURE = ["https://files.example/a.png"]
REQUESTS: list[Request] = [
    TextToImage("a fox", aspect_ratio="16:9", version="7", variety=1, stylization=2, weirdness=3),
    OmniReference("a fox", PICTURE, ow=1000),
    ImageToVideo("it runs", PICTURE, motion="low"),
    ExtendVideo(TASK, 0),
    Upscale(TASK, 3),
    Vary(TASK, 0),
]
# Whatever has an effect in Discord when it is not escaped.
NASTY = "@everyone @here <@1> <@&2> <#3> </imagine:4> <t:5:R> <:x:6> [a](https://b.c) discord.gg/d"


def checked(view: ui.LayoutView) -> str:
    """The text of a message that Discord takes."""
    components: Any = view.to_components()  # type: ignore[no-untyped-call]  # discord.py's
    rules.check_message(
        content="", embeds=[], components=components, flags=1 << 15, filenames=()
    )  # fmt: skip
    texts = [each.content for each in view.walk_children() if isinstance(each, ui.TextDisplay)]
    return "\n".join(texts)


def details(count: int = 4) -> TaskDetails:
    return TaskDetails(task_id=TASK, status=TaskStatus.SUCCEEDED, urls=URLS[:count])


@pytest.mark.parametrize("prompt", ["x" * 10_000, "*" * 10_000, "\U0001f98a" * 10_000, NASTY * 99])
@pytest.mark.parametrize("request_", REQUESTS, ids=lambda each: type(each).__name__)
def test_a_result_stays_below_discords_limits(request_: Request, prompt: str) -> None:
    """With the longest prompts, links and names, and whatever was ordered."""
    if hasattr(request_, "prompt"):
        object.__setattr__(request_, "prompt", prompt)  # longer than a request allows
    view = result_view(
        details(),
        intent_id=INTENT,
        user_id=USER,
        request=request_,
        prompt=prompt,
        links=[(n, f"https://files.example/{'x' * 500}{n}") for n in range(12)],
        parent_url=f"https://discord.com/channels/{USER}/{USER}/{USER}",
        mention=True,
    )
    text = checked(view)
    assert text.startswith(f"<@{USER}> **")
    assert len([each for each in text.split("\n") if each.startswith("[file")]) >= 1
    assert all(each.endswith(")") for each in text.split("\n") if each.startswith("[file"))


@given(st.text(max_size=200) | st.text(NASTY, max_size=200))
def test_a_prompt_is_only_text(prompt: str) -> None:
    """No mention, no Markdown, no line of its own, no invisible character."""
    shown = harmless(prompt, 100)
    assert len(shown) <= 200
    plain = shown.replace("\\\\", "")
    for each in "*_~`|<>@[]#:":
        assert plain.count(each) == plain.count(f"\\{each}")
    assert shown == "" or shown.isprintable()


@pytest.mark.parametrize(
    ("prompt", "heading"), [("\u202ea fox\u200b", "**a fox**"), ("\u200b", "**Midjourney**")]
)
def test_a_heading_is_bold_whatever_the_prompt_begins_with(prompt: str, heading: str) -> None:
    """Discord shows the asterisks themselves where a space stands beside them."""
    view = result_view(details(), intent_id=INTENT, user_id=1, request=TextToImage(prompt))
    assert checked(view).splitlines()[0] == heading


def test_a_long_prompt_is_cut_and_says_so() -> None:
    assert harmless("x" * 101, 100) == "x" * 99 + "…"
    assert harmless("x" * 1000, 100) == "x" * 99 + "…"
    assert harmless("x" * 100, 100) == "x" * 100


def test_a_result_without_a_prompt_has_a_heading() -> None:
    """As after the order above it was pruned."""
    view = result_view(details(1), intent_id=INTENT, user_id=1, request=Upscale(TASK, 3))
    assert checked(view) == "**Midjourney**, picture 4 upscaled\n-# Midjourney · <@1>"


@pytest.mark.parametrize(
    ("request_", "count", "expected"),
    [
        (REQUESTS[0], 4, "Delete U1 U2 U3 U4 Again V1 V2 V3 V4 Remix"),
        (REQUESTS[0], 2, "Delete U1 U2 Again V1 V2 Remix"),
        (ImageToVideo("it runs", PICTURE), 1, "Delete Again Remix"),
        (ExtendVideo(TASK, 0), 1, "Delete Again"),
        (Upscale(TASK, 3), 1, "Delete"),
        (Vary(TASK, 0), 4, "Delete U1 U2 U3 U4 Again V1 V2 V3 V4"),
        (None, 4, "Delete U1 U2 U3 U4 V1 V2 V3 V4"),
    ],
)
def test_buttons_are_those_that_a_result_allows(
    request_: Request | None, count: int, expected: str
) -> None:
    view = result_view(details(count), intent_id=INTENT, user_id=USER, request=request_)
    buttons = [each for each in view.walk_children() if isinstance(each, ResultButton)]
    assert [each.item.label for each in buttons] == expected.split()
    assert max(len(each.item.custom_id or "") for each in buttons) <= 100
    assert buttons[0].item.custom_id == f"mj1:D:{INTENT}:{USER}"
    if count == 4 and request_ is not None:
        assert f"mj1:V3:{INTENT}:{USER}" in [each.item.custom_id for each in buttons]


def test_a_text_is_cut_to_what_discord_takes() -> None:
    assert len(checked(text_view("x" * 5_000))) == 4_000


def test_the_prompt_of_a_form_is_found() -> None:
    """As discord.py and as Discord name it; a form without one has none."""
    field = {"type": 4, "custom_id": "a", "value": "a fox"}
    assert submitted_prompt({"components": [{"type": 18, "component": field}]}) == "a fox"
    assert submitted_prompt({"components": [{"type": 1, "components": [field]}]}) == "a fox"
    assert submitted_prompt({"components": [{"type": 10}]}) is None
    assert submitted_prompt(None) is None


# ─── errors ──────────────────────────────────────────────────────────────────────────────────────


def error_of(kind: type[MidAPIError]) -> MidAPIError:
    """An error as its class allows."""
    if issubclass(kind, errors.APIError):
        return kind(code=418, message=NASTY * 99)
    if issubclass(kind, errors.TaskError):
        failed = attrs.evolve(details(0), status=TaskStatus.FAILED, error_message=NASTY * 99)
        return kind(TASK, failed)
    given: dict[type, tuple[object, ...]] = {
        errors.InvalidRequestError: ({"prompt": NASTY * 99},),
        errors.KeyConflict: ("a key",),
        errors.TransportError: ("no route",),
        errors.ProtocolError: ("body", "is no JSON"),
        errors.SubmissionUnknown: (INTENT,),
        errors.DownloadError: ("https://a.example/b", "404"),
        errors.ResultExpired: ("https://a.example/b", "404"),
        errors.UnexpectedContent: ("https://a.example/b", "text"),
    }
    return kind(*given.get(kind, ()))


EVERY = [
    kind for kind in vars(errors).values()
    if inspect.isclass(kind) and issubclass(kind, MidAPIError)
]  # fmt: skip


@pytest.mark.parametrize("kind", EVERY, ids=lambda each: each.__name__)
def test_every_error_is_told_in_plain_words(kind: type[MidAPIError]) -> None:
    """Without effect in Discord, and short enough for a message without components."""
    text = DEFAULT.of_error(error_of(kind))
    assert 0 < len(text) <= 2 * MOST_REASON + 300
    assert "{" not in text
    assert "@everyone" not in text.replace("\\@everyone", "")
    assert "client." not in text, "advice for programmers"


def test_an_error_says_what_matters() -> None:
    unknown = DEFAULT.of_error(SubmissionUnknown(INTENT))
    assert INTENT in unknown
    failed = attrs.evolve(details(0), status=TaskStatus.FAILED, error_message="out of paint")
    assert DEFAULT.of_error(TaskFailed(TASK, failed)).endswith("out of paint")
    wrong = about(InvalidRequestError({"prompt": "is bad"}), key="k", intent_id=INTENT)
    assert DEFAULT.of_error(wrong) == "That cannot be ordered: prompt\\: is bad"
    dismissed = InvalidRequestError({"key": f"you have dismissed intent {INTENT}"})
    text = DEFAULT.of_error(dismissed)
    assert text == "That cannot be ordered: the bot's operator has cancelled or repeated the order"


# ─── other languages ─────────────────────────────────────────────────────────────────────────────


class _Cog:
    strings = Strings(
        imagine="Bilder malen", again="Nochmal", options={"prompt": "Was?"},
        out_of_credits="Kein Guthaben mehr.",
    )  # fmt: skip


def test_every_text_can_be_replaced() -> None:
    """Of commands, buttons and errors; an option without a text of its own keeps the usual one."""
    imagine, *_ = commands_of(_Cog())  # type: ignore[arg-type]  # it has what is needed here
    assert imagine.description == "Bilder malen"
    texts = {each.name: str(each.description) for each in imagine.parameters}
    assert texts["prompt"] == "Was?"
    assert texts["speed"] == DEFAULT.options["speed"]
    view = result_view(
        details(), intent_id=INTENT, user_id=1, request=TextToImage("x"), strings=_Cog.strings
    )
    labels = [each.item.label for each in view.walk_children() if isinstance(each, ResultButton)]
    assert "Nochmal" in labels
    assert _Cog.strings.of_error(InsufficientCreditsError(402)) == "Kein Guthaben mehr."


@pytest.mark.parametrize(
    ("texts", "problem"),
    [
        ({"heading": "**{frage}**"}, "heading"),
        ({"wait": "Noch {when"}, "wait"),
        ({"queued": "Noch {place.x}"}, "queued"),
        ({"sending": "Senden", "out_of_credits": "Leer, {name}"}, "out_of_credits"),
        ({"again": "x" * 81}, "again"),
        ({"delete": ""}, "delete"),
        ({"remix_title": "x" * 46}, "remix_title"),
        ({"video": "x" * 101}, "video"),
        ({"options": {"prompt": "x" * 101}}, "options.prompt"),
    ],
)
def test_a_text_that_cannot_be_shown_is_refused_at_once(
    texts: dict[str, Any], problem: str
) -> None:
    """Else a result that was paid for could not be shown."""
    with pytest.raises(InvalidRequestError) as caught:
        Strings(**texts)
    assert list(caught.value.problems) == [problem]


def test_texts_without_placeholders_may_contain_braces() -> None:
    """And leave out what would be."""
    strings = Strings(several_jobs="{rot, blau}", running="{", unknown="Wer weiß?")
    assert strings.of_error(SubmissionUnknown(INTENT)) == "Wer weiß?"


def test_each_text_is_documented() -> None:
    text = inspect.getdoc(Strings) or ""
    assert not [each.name for each in attrs.fields(Strings) if f"\n    {each.name}:" not in text]


def test_options_are_those_of_the_requests() -> None:
    """Choices and ranges are read from the request classes."""
    imagine, video, *_ = commands_of(_Cog())  # type: ignore[arg-type]  # it has what is needed here
    options = {each.name: each for each in imagine.parameters}
    assert [each.value for each in options["speed"].choices] == ["relaxed", "fast", "turbo"]
    assert len(options["aspect_ratio"].choices) == 11
    assert "niji7" in [each.value for each in options["version"].choices]
    assert (options["weirdness"].min_value, options["weirdness"].max_value) == (0, 3000)
    assert options["reference"].type is discord.AppCommandOptionType.attachment
    shown = {each.name: [choice.value for choice in each.choices] for each in video.parameters}
    assert shown["count"] == [1, 2, 4]
    assert shown["motion"] == ["high", "low"]
