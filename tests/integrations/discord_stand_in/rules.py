"""What Discord refuses, as pure functions of what was sent.

The limits come from Discord's pages (each function names its page); the names inside of an
"Invalid Form Body" are the ones that bots report.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import attrs

from tests.integrations.discord_stand_in.things import COMPONENTS_V2, Json, media, walk

MOST_FILES = 10
MOST_COMPONENTS = 40
MOST_TEXT = 4000

# https://docs.discord.com/developers/topics/opcodes-and-status-codes#json-json-error-codes
MESSAGES = {
    0: "401: Unauthorized",
    10003: "Unknown Channel",
    10004: "Unknown Guild",
    10008: "Unknown Message",
    10013: "Unknown User",
    10015: "Unknown Webhook",
    10062: "Unknown interaction",
    10063: "Unknown application command",
    40005: "Request entity too large",
    40060: "Interaction has already been acknowledged.",
    40094: "This interaction has hit the maximum number of follow up messages",
    50001: "Missing Access",
    50005: "Cannot edit a message authored by another user",
    50006: "Cannot send an empty message",
    50007: "Cannot send messages to this user",
    50013: "Missing Permissions",
    50027: "Invalid Webhook Token",
    50035: "Invalid Form Body",
    50083: "Thread is archived",
    50278: "Cannot send messages to this user due to having no mutual guilds",
}
# What a correct bot meets, too: the world is so. Everything else is a mistake of the bot.
NOT_A_MISTAKE = {10003, 10004, 10008, 10013, 50001, 50007, 50013, 50083, 50278}


@attrs.define
class Refused(Exception):
    """Discord's refusal of a request.

    Attributes:
        status: of HTTP.
        code: Discord's own code.
        errors: for an invalid form, what is wrong with which field.
    """

    status: int
    code: int
    errors: Json | None = None

    def body(self) -> Json:
        """Return the body of the answer."""
        body: Json = {"message": MESSAGES.get(self.code, "General error"), "code": self.code}
        return body if self.errors is None else body | {"errors": self.errors}

    def __str__(self) -> str:
        return f"{self.status} with code {self.code}: {self.body()}"


def invalid(path: str, code: str, message: str) -> Refused:
    """Return the refusal of one field; the path is written with dots.

    https://docs.discord.com/developers/reference#error-messages
    """
    errors: Json = {"_errors": [{"code": code, "message": message}]}
    for name in reversed(path.split(".") if path else []):
        errors = {name: errors}
    return Refused(400, 50035, errors)


def check_length(path: str, value: object, least: int, most: int) -> None:
    """Refuse a text that is too short or too long."""
    if not isinstance(value, str):
        raise invalid(path, "BASE_TYPE_REQUIRED", "This field is required")
    if not least <= len(value) <= most:
        bounds = f"Must be between {least} and {most} in length."
        raise invalid(path, "BASE_TYPE_BAD_LENGTH", bounds)


# ------------------------------------------------------------------------------------ messages


def check_message(
    *,
    content: str | None,
    embeds: Sequence[Json],
    components: Sequence[Json],
    flags: int,
    filenames: Collection[str],
) -> None:
    """Refuse a message that Discord would refuse, as it is after a creation or an edit.

    https://docs.discord.com/developers/resources/message#create-message
    https://docs.discord.com/developers/components/reference
    """
    if len(filenames) > MOST_FILES:
        raise invalid(
            "attachments", "BASE_TYPE_MAX_LENGTH", f"Must be {MOST_FILES} or fewer in length."
        )
    if flags & COMPONENTS_V2:
        for name, value in (("content", content), ("embeds", embeds)):
            if value:
                raise invalid(
                    name,
                    "MESSAGE_CANNOT_USE_LEGACY_FIELDS_WITH_COMPONENTS_V2",
                    f"The '{name}' field cannot be used when using MessageFlags.IS_COMPONENTS_V2",
                )
        if not components:
            raise Refused(400, 50006)
    elif not (content or embeds or components or filenames):
        raise Refused(400, 50006)
    if content and len(content) > 2000:
        raise invalid("content", "BASE_TYPE_MAX_LENGTH", "Must be 2000 or fewer in length.")
    if len(embeds) > 10:
        raise invalid("embeds", "BASE_TYPE_MAX_LENGTH", "Must be 10 or fewer in length.")
    check_components(components, is_v2=bool(flags & COMPONENTS_V2), filenames=filenames)


def check_components(
    components: Sequence[Json], *, is_v2: bool, filenames: Collection[str]
) -> None:
    """Refuse components that break a rule, alone or together.

    https://docs.discord.com/developers/components/reference
    """
    every = list(walk(components))
    if not is_v2:
        if len(components) > 5:
            raise invalid(
                "components", "BASE_TYPE_BAD_LENGTH", "Must be between 1 and 5 in length."
            )
        for index, each in enumerate(components):
            if each["type"] != 1:
                raise invalid(
                    f"components.{index}.type",
                    "UNION_TYPE_CHOICES",
                    'Value of field "type" must be one of (1,).',
                )
    elif len(every) > MOST_COMPONENTS:
        raise invalid(
            "components",
            "COMPONENT_MAX_TOTAL_COMPONENTS_EXCEEDED",
            f"The total number of components cannot exceed {MOST_COMPONENTS}",
        )
    if sum(len(each["content"]) for each in every if each["type"] == 10) > MOST_TEXT:
        raise invalid(
            "components",
            "COMPONENT_DISPLAYABLE_TEXT_SIZE_EXCEEDED",
            f"Components displayable text size exceeds maximum size of {MOST_TEXT}",
        )
    _check_each("components", components, _IN_MESSAGE)
    _check_unique(every)
    for each in media(components):
        scheme, _, name = each["url"].partition("://")
        if scheme == "attachment" and name not in filenames:
            raise invalid(
                "components",
                "UNFURLED_MEDIA_ITEM_REFERENCED_ATTACHMENT_NOT_FOUND",
                f"The referenced attachment was not found: {name}",
            )
        if scheme not in ("attachment", "http", "https"):
            raise invalid(
                "components", "URL_TYPE_INVALID_SCHEME", f'Scheme "{scheme}" is not supported.'
            )


def _check_unique(every: Sequence[Json]) -> None:
    custom_ids = [each["custom_id"] for each in every if each.get("custom_id") is not None]
    for custom_id in custom_ids:
        if custom_ids.count(custom_id) > 1:
            raise invalid(
                "components",
                "COMPONENT_CUSTOM_ID_DUPLICATED",
                f"Component custom id cannot be duplicated: {custom_id}",
            )
    numbers = [each["id"] for each in every if each.get("id")]
    if len(numbers) != len(set(numbers)):
        raise invalid("components", "COMPONENT_ID_DUPLICATED", "Component id cannot be duplicated")


def _check_each(path: str, components: Sequence[Json], allowed: Collection[int]) -> None:
    for index, each in enumerate(components):
        here = f"{path}.{index}"
        if each["type"] not in allowed:
            choices = ", ".join(map(str, sorted(allowed)))
            raise invalid(
                f"{here}.type",
                "UNION_TYPE_CHOICES",
                f'Value of field "type" must be one of ({choices}).',
            )
        check = _CHECKS.get(each["type"])
        if check is not None:
            check(here, each)


def _check_row(path: str, row: Json) -> None:
    inside = row.get("components", [])
    most = 5 if all(each["type"] == 2 for each in inside) else 1
    if not 1 <= len(inside) <= most:
        raise invalid(
            f"{path}.components",
            "BASE_TYPE_BAD_LENGTH",
            f"Must be between 1 and {most} in length.",
        )
    _check_each(f"{path}.components", inside, _IN_ROW)


def _check_button(path: str, button: Json) -> None:
    """https://docs.discord.com/developers/components/reference#button."""
    is_link = button.get("style") == 5
    if button.get("style") not in (1, 2, 3, 4, 5, 6):
        raise invalid(f"{path}.style", "BASE_TYPE_CHOICES", "Value must be one of (1, …, 6).")
    if is_link == ("custom_id" in button):
        raise invalid(path, "BUTTON_COMPONENT_INVALID", "A custom id is for buttons without an url")
    check_length(*((f"{path}.url", button.get("url"), 1, 512) if is_link else
                   (f"{path}.custom_id", button["custom_id"], 1, 100)))  # fmt: skip
    if button.get("label") is None and button.get("emoji") is None:
        raise invalid(path, "BUTTON_COMPONENT_MUST_HAVE_LABEL_OR_EMOJI", "A label or an emoji")
    if button.get("label") is not None:
        check_length(f"{path}.label", button["label"], 0, 80)


def _check_select(path: str, select: Json) -> None:
    check_length(f"{path}.custom_id", select.get("custom_id"), 1, 100)
    if select["type"] == 3 and not 1 <= len(select.get("options", [])) <= 25:
        raise invalid(
            f"{path}.options", "BASE_TYPE_BAD_LENGTH", "Must be between 1 and 25 in length."
        )


def _check_section(path: str, section: Json) -> None:
    inside = section.get("components", [])
    if not 1 <= len(inside) <= 3:
        raise invalid(
            f"{path}.components", "BASE_TYPE_BAD_LENGTH", "Must be between 1 and 3 in length."
        )
    _check_each(f"{path}.components", inside, {10})
    if not section.get("accessory"):
        raise invalid(f"{path}.accessory", "BASE_TYPE_REQUIRED", "This field is required")
    _check_each(f"{path}.accessory", [section["accessory"]], {2, 11})


def _check_text(path: str, text: Json) -> None:
    check_length(f"{path}.content", text.get("content"), 1, MOST_TEXT)


def _check_gallery(path: str, gallery: Json) -> None:
    items = gallery.get("items", [])
    if not 1 <= len(items) <= 10:
        raise invalid(
            f"{path}.items", "BASE_TYPE_BAD_LENGTH", "Must be between 1 and 10 in length."
        )
    for index, item in enumerate(items):
        if item.get("description") is not None:
            check_length(f"{path}.items.{index}.description", item["description"], 1, 1024)


def _check_container(path: str, container: Json) -> None:
    _check_each(f"{path}.components", container.get("components", []), {1, 9, 10, 12, 13, 14})


_IN_MESSAGE = {1, 9, 10, 12, 13, 14, 17}
_IN_ROW = {2, 3, 5, 6, 7, 8}
_CHECKS: Mapping[int, Callable[[str, Json], None]] = {
    1: _check_row,
    2: _check_button,
    3: _check_select,
    5: _check_select,
    6: _check_select,
    7: _check_select,
    8: _check_select,
    9: _check_section,
    10: _check_text,
    12: _check_gallery,
    17: _check_container,
}


def check_allowed_mentions(allowed: Mapping[str, Any] | None) -> None:
    """Refuse `allowed_mentions` that say two things.

    https://docs.discord.com/developers/resources/message#allowed-mentions-object
    """
    for name in ("users", "roles"):
        if allowed and name in allowed.get("parse", []) and allowed.get(name):
            raise invalid(
                "allowed_mentions",
                "MESSAGE_ALLOWED_MENTIONS_PARSE_EXCLUSIVE",
                f'parse:["{name}"] and {name}: [ids...] are mutually exclusive.',
            )
        if allowed and len(allowed.get(name, [])) > 100:
            raise invalid(
                f"allowed_mentions.{name}", "BASE_TYPE_MAX_LENGTH", "Must be 100 or fewer"
            )


# -------------------------------------------------------------------------------------- modals


def check_modal(modal: Json) -> None:
    """Refuse a modal that Discord would refuse.

    https://docs.discord.com/developers/interactions/receiving-and-responding
    #interaction-response-object-modal
    """
    check_length("data.custom_id", modal.get("custom_id"), 1, 100)
    check_length("data.title", modal.get("title"), 1, 45)
    rows = modal.get("components", [])
    if not 1 <= len(rows) <= 5:
        raise invalid(
            "data.components", "BASE_TYPE_BAD_LENGTH", "Must be between 1 and 5 in length."
        )
    for index, row in enumerate(rows):
        here = f"data.components.{index}"
        if row["type"] not in (1, 10, 18):
            raise invalid(f"{here}.type", "UNION_TYPE_CHOICES", "Value must be one of (1, 10, 18).")
        if row["type"] == 18:
            check_length(f"{here}.label", row.get("label"), 1, 45)
            if row.get("description") is not None:
                check_length(f"{here}.description", row["description"], 1, 100)
    every = list(walk(rows))
    _check_unique(every)
    for field in every:
        if field["type"] == 4:
            _check_text_input(f"data.components.{rows.index(_row_of(field, rows))}", field)


def _row_of(field: Json, rows: Sequence[Json]) -> Json:
    return next(row for row in rows if any(each is field for each in walk([row])))


def _check_text_input(path: str, field: Json) -> None:
    """https://docs.discord.com/developers/components/reference#text-input."""
    check_length(f"{path}.custom_id", field.get("custom_id"), 1, 100)
    most = field.get("max_length", 4000)
    if not 1 <= most <= 4000:
        raise invalid(f"{path}.max_length", "NUMBER_TYPE_MAX", "Value must be between 1 and 4000")
    if field.get("value") is not None:
        check_length(f"{path}.value", field["value"], 0, most)
    if field.get("placeholder") is not None:
        check_length(f"{path}.placeholder", field["placeholder"], 0, 100)
    if field.get("label") is not None:
        check_length(f"{path}.label", field["label"], 1, 45)


# ------------------------------------------------------------------------------------ commands

_NAME = re.compile(r"[-_'\w]{1,32}")


def check_command(command: Json) -> None:
    """Refuse a slash command that cannot be registered.

    https://docs.discord.com/developers/interactions/application-commands
    #application-command-object
    """
    if command.get("type", 1) != 1:
        return  # an entry of a context menu
    _check_name("name", command.get("name"))
    check_length("description", command.get("description"), 1, 100)
    _check_options("options", command.get("options", []))
    if _size(command) > 8000:
        raise invalid("", "APPLICATION_COMMAND_TOO_LARGE", "Command exceeds maximum size (8000)")


def _check_name(path: str, name: object) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name != name.lower():
        raise invalid(path, "APPLICATION_COMMAND_INVALID_NAME", "Command name is invalid")


def _check_options(path: str, options: Sequence[Json]) -> None:
    if len(options) > 25:
        raise invalid(path, "BASE_TYPE_MAX_LENGTH", "Must be 25 or fewer in length.")
    names = [option.get("name") for option in options]
    if len(names) != len(set(names)):
        raise invalid(
            path, "APPLICATION_COMMAND_OPTIONS_NAME_ALREADY_EXISTS", "Option name already exists"
        )
    required = [bool(option.get("required")) for option in options]
    if required != sorted(required, reverse=True):
        raise invalid(
            path,
            "APPLICATION_COMMAND_OPTIONS_REQUIRED_INVALID",
            "Required options must be placed before non-required options",
        )
    for index, option in enumerate(options):
        here = f"{path}.{index}"
        _check_name(f"{here}.name", option.get("name"))
        check_length(f"{here}.description", option.get("description"), 1, 100)
        choices = option.get("choices", [])
        if len(choices) > 25:
            raise invalid(
                f"{here}.choices", "BASE_TYPE_MAX_LENGTH", "Must be 25 or fewer in length."
            )
        for number, choice in enumerate(choices):
            check_length(f"{here}.choices.{number}.name", choice.get("name"), 1, 100)
        if option["type"] in (1, 2):
            _check_options(f"{here}.options", option.get("options", []))


def _size(command: Json) -> int:
    """Return what counts towards 8,000 characters: names, descriptions and values of choices."""
    own = len(command["name"]) + len(command.get("description", ""))
    own += sum(len(str(c["name"])) + len(str(c["value"])) for c in command.get("choices", []))
    return own + sum(map(_size, command.get("options", [])))


def check_options(command: Json, given: Mapping[str, object]) -> None:
    """Complain (to the test) about options that Discord's own client does not let a user send."""
    known = {option["name"]: option for option in command.get("options", [])}
    if unknown := set(given) - set(known):
        raise ValueError(f"/{command['name']} has no option {', '.join(sorted(unknown))}")
    for name, option in known.items():
        if name not in given:
            if option.get("required"):
                raise ValueError(f"/{command['name']} needs the option {name}")
            continue
        value = given[name]
        choices = [choice["value"] for choice in option.get("choices", [])]
        if choices and value not in choices:
            raise ValueError(f"{name}={value!r} is not a choice; choices are {choices}")
        size: Any = len(value) if isinstance(value, str) else value
        least = option.get("min_value", option.get("min_length"))
        most = option.get("max_value", option.get("max_length"))
        if (least is not None and size < least) or (most is not None and size > most):
            raise ValueError(f"{name}={value!r} is not between {least} and {most}")
