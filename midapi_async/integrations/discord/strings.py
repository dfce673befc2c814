"""Every text that people read in Discord, and how texts from outside are escaped there."""

from __future__ import annotations

from string import Formatter

import attrs

from midapi_async import (
    AuthenticationError,
    ClientClosed,
    DownloadError,
    FeatureDisabledError,
    InsufficientCreditsError,
    InvalidRequestError,
    JournalError,
    MaintenanceError,
    MidAPIError,
    PromptRefusedError,
    PromptRejected,
    ProtocolError,
    RateLimitError,
    ServerError,
    SpendingCapError,
    SubmissionUnknown,
    TaskExpired,
    TaskFailed,
    TaskNotFound,
    TransportError,
)

# Discord allows 4,000 characters in the texts of a message. What is escaped grows to twice its
# length at most (a prompt of only asterisks), and the rest of a message stays below 1,000.
MOST_PROMPT = 1_000
MOST_REASON = 400
_ELLIPSIS = "…"
# Characters that Discord allows in a text that stands outside of a message, or on a button.
_MOST = {
    **dict.fromkeys(("imagine", "video", "credits", "task"), 100),
    **dict.fromkeys(("remix_title", "remix_prompt"), 45),
    **dict.fromkeys(("again", "remix", "delete"), 80),
}
_OF_ERRORS = frozenset({"reason", "intent", "task"})  # what each text about an error may name
# Every character that begins or ends anything in Discord's Markdown, mentions and links included.
_SPECIAL = frozenset("\\*_~`|<>#-+.:[]()@&!=/")


def harmless(text: object, most: int) -> str:
    """A text from outside as plain text for Discord: on one line, cut, without any effect.

    Args:
        text: a prompt, or the message of an error.
        most: how many characters of it are kept; the result has at most twice as many.
    """
    shown = "".join(each if each.isprintable() else " " for each in str(text)[: most * 2])
    shown = " ".join(shown.split())
    if len(shown) > most or len(str(text)) > most * 2:
        shown = shown[: most - 1] + _ELLIPSIS
    # The backslash keeps `@everyone` from being a mention only together with `AllowedMentions`,
    # which every message here has.
    return "".join(f"\\{each}" if each in _SPECIAL else each for each in shown)


@attrs.frozen(kw_only=True)
class Strings:
    """Every text in Discord. Give the cog another one for another language.

    The words in braces are filled in; a text may leave them out. Discord shows ``<t:…:R>`` as
    "2 minutes ago", in the reader's language. Discord allows 100 characters in a description, 45
    in a title or a label and 80 on a button. A text that could not be shown is refused with
    `InvalidRequestError`.

    Attributes:
        imagine: the description of ``/imagine``.
        video: the description of ``/video``.
        credits: the description of ``/credits``.
        task: the description of ``/task``.
        options: the description of each command's option, by its name.
        queued: the order waits for the rate limit; ``{place}`` orders are before it.
        sending: the order is being sent.
        retrying: MidAPI could not take it and it is sent again; ``{reason}`` in words.
        generating: it was accepted; ``{usually}`` is how long such an order takes, such as "60 s".
        late: it takes longer than most.
        settling: the answer was lost, and a callback may still come.
        no_look: the last look failed; ``{reason}`` in words.
        since: under the progress; ``{since}`` is when it began.
        heading: above a result: the ``{prompt}``.
        settings: under it: the ``{settings}`` as flags, and ``{by}``, who asked for it.
        upscaled: the heading of an upscaled picture; its ``{number}`` from 1.
        varied: the heading of variations of a picture; its ``{number}`` from 1.
        untitled: in place of a prompt that is not known, and of settings where there are none.
        parent: the text of the link to the message that a result was made from.
        link: the text of the link to a file that cannot be attached; its ``{number}`` from 1.
        elsewhere: what the working message becomes if the result has a message of its own.
        existing: the answer to a second click; ``{link}`` leads to the result.
        running: the answer to a second click while it is being made.
        again: the button that asks for the same once more.
        remix: the button that asks for the same with another prompt.
        delete: the button that deletes a result.
        remix_title: the title of the form for another prompt.
        remix_prompt: the label of its field.
        credits_left: the answer to ``/credits``; ``{credits}`` are left.
        task_status: the answer to ``/task``.
        wait: the cooldown is not over; ``{when}`` it will be.
        repeated: the same button was pressed twice by the same user.
        too_many_jobs: the user, or the guild, has ``{limit}`` orders under way.
        too_many_pictures: ``{limit}`` pictures were ordered in the last 24 hours.
        several_jobs: the prompt would run several jobs.
        wrong_role: the user has none of the allowed roles.
        wrong_channel: the channel is not an allowed one.
        not_yours: only the requester may delete a result.
        forgotten: the journal does not know what a button belongs to.
        picture_gone: the reference picture is no longer at Discord.
        not_a_picture: the attachment is not a picture.
        out_of_credits: the account is empty.
        spending_cap: the API key has reached its spending cap.
        prompt_refused: moderation refused the prompt; ``{reason}`` is MidAPI's text.
        invalid: the request is wrong; ``{reason}`` says what.
        maintenance: MidAPI is under maintenance.
        rate_limited: MidAPI is busy.
        misconfigured: MidAPI does not accept the API key.
        unreachable: MidAPI does not answer.
        disabled: MidAPI has switched this off.
        unknown: it cannot be known whether it was bought; ``{intent}`` is its id.
        task_failed: MidAPI could not finish the task; ``{reason}`` is its text.
        task_unknown: MidAPI does not know the task.
        expired: MidAPI has deleted the result.
        closing: the bot is being restarted.
        broken: the bot has a problem of its own.
    """

    imagine: str = "Make pictures from a prompt"
    video: str = "Make a video from a picture and a prompt"
    credits: str = "Show how many credits are left"
    task: str = "Show the status of a task"
    options: dict[str, str] = attrs.field(
        factory=lambda: {
            "prompt": "What to draw; Midjourney's own --flags are allowed",
            "aspect_ratio": "Width to height",
            "speed": "How fast; the price depends on it",
            "version": "Midjourney's model",
            "stylization": "How strong Midjourney's own style is",
            "variety": "How much the four pictures differ",
            "weirdness": "How unusual the pictures are",
            "reference": "A picture to start from",
            "picture": "The picture to start from",
            "motion": "How much movement",
            "hd": "High definition",
            "count": "How many videos",
            "task_id": "MidAPI's id of the task",
        },
        hash=False,
    )
    queued: str = "Waiting in line: {place} before this one."
    sending: str = "Sending the order."
    retrying: str = "MidAPI could not take the order yet; it is sent again. {reason}"
    generating: str = "Generating. Such an order usually takes {usually}."
    late: str = "Generating. This takes longer than most orders; it is not lost."
    settling: str = "MidAPI's answer was lost. Waiting to hear whether the order was accepted."
    no_look: str = "Generating. MidAPI does not show the result just now: {reason}"
    since: str = "-# Ordered {since}"
    heading: str = "**{prompt}**"
    settings: str = "-# {settings} · {by}"
    upscaled: str = "**{prompt}**, picture {number} upscaled"
    varied: str = "**{prompt}**, picture {number} varied"
    untitled: str = "Midjourney"
    parent: str = "made from"
    link: str = "file {number}"
    elsewhere: str = "It is ready: {link}"
    existing: str = "This exists already: {link}"
    running: str = "This order is already under way."
    again: str = "Again"
    remix: str = "Remix"
    delete: str = "Delete"
    remix_title: str = "Another prompt"
    remix_prompt: str = "Prompt"
    credits_left: str = "{credits} credits are left."
    task_status: str = "Task {task} is {status}."
    wait: str = "You can order again {when}."
    repeated: str = "That was ordered a moment ago."
    too_many_jobs: str = "The limit of {limit} orders under way is reached. Wait for one of them."
    too_many_pictures: str = "The limit of {limit} pictures in 24 hours is used up."
    several_jobs: str = (
        "A prompt with {…, …} or --repeat stands for several orders, which is not allowed here."
    )
    wrong_role: str = "You need another role for that."
    wrong_channel: str = "That is not allowed in this channel."
    not_yours: str = "Only the person who ordered this can delete it."
    forgotten: str = "That is too old: the bot has no record of it any more."
    picture_gone: str = (
        "The reference picture is no longer at Discord. Use the command again, with the picture."
    )
    not_a_picture: str = "The attachment must be a picture."
    out_of_credits: str = (
        "The bot's account is out of credits. Nothing was bought; its operator must top it up."
    )
    spending_cap: str = (
        "The bot has reached its spending limit. Nothing was bought; its operator can raise the "
        "limit."
    )
    prompt_refused: str = (
        "Moderation refused this prompt or picture. Change it; the same one is refused again. "
        "{reason}"
    )
    invalid: str = "That cannot be ordered: {reason}"
    maintenance: str = "MidAPI is under maintenance. Nothing was bought; try again later."
    rate_limited: str = "MidAPI is busy. Nothing was bought; try again in a minute."
    misconfigured: str = (
        "MidAPI does not accept the bot's API key. Nothing was bought; the bot's operator "
        "must correct it."
    )
    unreachable: str = "MidAPI cannot be reached. Try again later."
    disabled: str = "MidAPI has switched this kind of order off for now. Nothing was bought."
    unknown: str = (
        "It cannot be known whether MidAPI accepted this order. It is not sent again, to avoid "
        "paying twice. The bot's operator can find out (order {intent}); if it was accepted, "
        "the result comes here."
    )
    task_failed: str = "Midjourney could not finish this order. {reason}"
    task_unknown: str = "MidAPI does not know this task, or has no result of it yet."
    expired: str = "MidAPI has deleted the result, which it keeps for 15 days."
    closing: str = (
        "The bot is being restarted. If this was ordered already, the result comes afterwards; if "
        "not, ask again in a minute."
    )
    broken: str = "The bot has a problem of its own, which its log describes. {reason}"

    def __attrs_post_init__(self) -> None:
        problems = {
            name: f"must have 1 to {most} characters, has {len(text)}"
            for name, text, most in (
                *((name, getattr(self, name), most) for name, most in _MOST.items()),
                *((f"options.{name}", text, 100) for name, text in self.options.items()),
            )
            if not 1 <= len(text) <= most
        }
        of_errors = {name for _, name in _BY_ERROR}
        for field in attrs.fields(Strings):
            known = _OF_ERRORS if field.name in of_errors else _filled_in(field.default)
            try:
                if known:
                    getattr(self, field.name).format(**dict.fromkeys(known, "x"))
            except (LookupError, ValueError, AttributeError):
                names = ", ".join(f"{{{name}}}" for name in sorted(known))
                problems[field.name] = f"may have only {names} in braces"
        if problems:
            raise InvalidRequestError(problems)

    def of_error(self, error: MidAPIError) -> str:
        """An error in words for the one who has ordered; for the log there is ``str(error)``."""
        name = next((name for kind, name in _BY_ERROR if isinstance(error, kind)), "broken")
        template: str = getattr(self, name)
        # The reason is shown only where people can do something about it, and never the SDK's
        # advice, which is meant for programmers.
        reason = getattr(error, "message", "")
        if isinstance(error, InvalidRequestError):
            # Without keys and ids. A problem with the key, which the bot has made, means that the
            # order was dismissed or resubmitted while it was unknown.
            problems = [f"{n}: {problem}" for n, problem in error.problems.items() if n != "key"]
            reason = "; ".join(problems) or "the bot's operator has cancelled or repeated the order"
        elif isinstance(error, TaskFailed):
            reason = (error.details and error.details.error_message) or ""
        return template.format(
            reason=harmless(reason, MOST_REASON), intent=error.intent_id, task=error.task_id
        ).strip()


def _filled_in(text: object) -> frozenset[str]:
    """The words of a default text that are filled in."""
    if not isinstance(text, str):
        return frozenset()  # the texts of options
    return frozenset(
        name for _, name, *_ in Formatter().parse(text) if name and name.isidentifier()
    )


# The first that fits: subclasses stand before their bases.
_BY_ERROR: tuple[tuple[type[MidAPIError], str], ...] = (
    (PromptRefusedError, "prompt_refused"),
    (PromptRejected, "prompt_refused"),
    (InsufficientCreditsError, "out_of_credits"),
    (SpendingCapError, "spending_cap"),
    (MaintenanceError, "maintenance"),
    (RateLimitError, "rate_limited"),
    (AuthenticationError, "misconfigured"),
    (FeatureDisabledError, "disabled"),
    (SubmissionUnknown, "unknown"),
    (TaskFailed, "task_failed"),
    (TaskExpired, "expired"),
    (TaskNotFound, "task_unknown"),
    (DownloadError, "expired"),
    (ClientClosed, "closing"),
    (JournalError, "broken"),
    (InvalidRequestError, "invalid"),
    (TransportError, "unreachable"),
    (ServerError, "unreachable"),
    (ProtocolError, "unreachable"),
)

DEFAULT = Strings()
