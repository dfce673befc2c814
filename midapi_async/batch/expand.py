r"""Prompts for which Midjourney would run several jobs, written out as one prompt for each job.

Midjourney documents them on two pages:
https://docs.midjourney.com/hc/en-us/articles/32761322355597-Permutations and
https://docs.midjourney.com/hc/en-us/articles/32757107922061-Repeat.

- ``a {red, green} bird`` stands for ``a red bird`` and ``a green bird``, anywhere in a prompt, also
  in its parameters: ``--ar {3:2, 1:1}``, ``--{v 5, niji}``. Several groups give every combination,
  the first group varying slowest. A group may stand in an option of another.
- ``\,`` is a comma that separates nothing. ``{red, pastel \, yellow} bird`` stands for ``a red
  bird`` and ``a pastel, yellow bird``, so the blanks before it go too.
- ``--repeat 4`` or ``--r 4`` runs the same prompt four times.

Midjourney allows 40 jobs for a prompt. Here each job becomes a prompt of its own, so more are
allowed. Braces without a comma stay as they are, and so does a prompt whose braces do not
match.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple, TypeAlias

MOST = 10_000  # prompts that one prompt may stand for
_LONGEST = 20_000  # characters of a prompt with groups; a request's own may have 2,000
_MOST_CHARACTERS = 20_000_000  # of all prompts that one stands for
_DEEPEST = 10  # nesting of groups

# A backslash keeps the character behind it from having a meaning.
_PIECE = re.compile(r"\\.|[{},]|[^\\{},]+|\\", re.DOTALL)
_ESCAPED_COMMA = re.compile(r"\s*\\,")
_REPEAT = re.compile(r"(?:^|\s+)(?:--|—)(?:repeat|r)\s+([0-9]+)(?!\S)")


class _Group(NamedTuple):
    """Options, and how many texts each of them stands for. Braces without a comma have one."""

    options: list[_Parts]
    counts: list[int]


_Parts: TypeAlias = "list[str | _Group]"
_Context: TypeAlias = Literal["nothing", "option", "braces"]


def expanded(prompt: str) -> tuple[int, Iterator[str]]:
    """How many prompts a prompt stands for, and an iterator that makes each of them in turn.

    Args:
        prompt: with or without groups and ``--repeat``.

    Raises:
        ValueError: there would be too many, or the prompt cannot be expanded; the text says why.
    """
    if "{" in prompt and len(prompt) > _LONGEST:
        raise ValueError(f"has more than {_LONGEST:,} characters")
    parts: _Parts = _parsed(prompt) if "{" in prompt else [prompt]
    count = _count(parts)
    if count > MOST:
        raise ValueError(f"stands for more than {MOST:,} prompts")
    if count > 1 and count * len(prompt) > _MOST_CHARACTERS:
        raise ValueError(f"stands for {count:,} prompts, too many for its length")
    total = count
    if "--" in prompt or "—" in prompt:
        # An option may contain the flag or its number, so --repeat may differ between the prompts.
        total = 0
        for index in range(count):
            total += _without_repeat(_text(parts, index, "nothing"))[1]
            if total > MOST:
                raise ValueError(f"stands for more than {MOST:,} prompts")
    return total, _prompts(parts, count)


def _prompts(parts: _Parts, count: int) -> Iterator[str]:
    for index in range(count):
        text, times = _without_repeat(_text(parts, index, "nothing"))
        if count > 1:  # an empty option leaves the blanks on both of its sides
            text = re.sub(" {2,}", " ", text).strip()
        for _ in range(times):
            yield text


def _without_repeat(prompt: str) -> tuple[str, int]:
    """A prompt without its ``--repeat``, and the number that it gives; 1 if there is none.

    Raises:
        ValueError: there are several, or the number is 0 or too large.
    """
    found = _REPEAT.findall(prompt)
    if not found:
        return prompt, 1
    rest = _REPEAT.sub("", prompt).strip()
    if len(found) > 1 or _REPEAT.search(rest):
        raise ValueError("has --repeat (or --r) more than once")
    number = found[0].lstrip("0")
    if not number:
        raise ValueError("has --repeat 0")
    # int() raises ValueError above 4,300 digits.
    times = int(number) if len(number) <= len(str(MOST)) else MOST + 1
    return rest, times


def _parsed(prompt: str) -> _Parts:
    """The texts and groups of a prompt; one text if its braces do not match.

    Raises:
        ValueError: its braces are nested too deeply.
    """
    open_groups: list[list[_Parts]] = [[[]]]  # the prompt itself is the only option of the first
    deepest = 0
    for piece in _PIECE.findall(prompt):
        parts = open_groups[-1][-1]
        if piece == "{":
            open_groups.append([[]])
            deepest = max(deepest, len(open_groups) - 1)
        elif piece == "}":
            if len(open_groups) == 1:
                return [prompt]
            options = open_groups.pop()
            open_groups[-1][-1].append(_Group(options, [_count(each) for each in options]))
        elif piece == "," and len(open_groups) > 1:
            open_groups[-1].append([])
        elif parts and isinstance(parts[-1], str):
            parts[-1] += piece
        else:
            parts.append(piece)
    if len(open_groups) > 1:
        return [prompt]
    if deepest > _DEEPEST:
        raise ValueError(f"has more than {_DEEPEST} pairs of braces inside each other")
    return open_groups[0][0]


def _count(parts: _Parts) -> int:
    """How many texts a sequence stands for; anything above `MOST` if they are too many."""
    product = 1
    for part in parts:
        if isinstance(part, _Group):
            product = min(product * sum(part.counts), MOST + 1)
    return product


def _text(parts: _Parts, index: int, within: _Context) -> str:
    r"""The text with this index, of those that a sequence stands for.

    Args:
        parts: the sequence.
        index: from 0; less than the count of the sequence.
        within: where the sequence stands. In an option, ``\,`` becomes a comma. Outside of all
            groups it has no meaning; and in braces that stay, a mere comma would make a group.
    """
    texts = []
    for part in reversed(parts):  # the last group varies fastest
        if isinstance(part, str):
            texts.append(_ESCAPED_COMMA.sub(",", part) if within == "option" else part)
            continue
        index, choice = divmod(index, sum(part.counts))
        if len(part.options) == 1:
            texts.append("{" + _text(part.options[0], choice, "braces") + "}")
            continue
        chosen = 0
        while choice >= part.counts[chosen]:
            choice -= part.counts[chosen]
            chosen += 1
        inside: _Context = "braces" if within == "braces" else "option"
        texts.append(_text(part.options[chosen], choice, inside).strip())
    return "".join(reversed(texts))
