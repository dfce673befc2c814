"""A prompt for several jobs becomes several prompts, as Midjourney documents it."""

import itertools
import re
import time
import tracemalloc

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from midapi_async import TextToImage
from midapi_async.batch.expand import MOST, expanded
from midapi_async.requests import has_several_jobs


def prompts(prompt: str) -> list[str]:
    """All prompts that one stands for; their number is known before."""
    count, found = expanded(prompt)
    texts = list(found)
    assert len(texts) == count
    return texts


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        # From Midjourney's pages on permutations.
        ("a {red, green, yellow} bird", ["a red bird", "a green bird", "a yellow bird"]),
        ("a bird --ar {3:2, 1:1}", ["a bird --ar 3:2", "a bird --ar 1:1"]),
        ("a bird --{v 5, niji, test}", ["a bird --v 5", "a bird --niji", "a bird --test"]),
        (
            "a {red, green} bird in the {jungle, desert}",
            [
                "a red bird in the jungle",
                "a red bird in the desert",
                "a green bird in the jungle",
                "a green bird in the desert",
            ],
        ),
        (
            (
                "A {sculpture, painting} of a {seagull {on a pier, on a beach}, "
                "poodle {on a sofa, in a truck}}."
            ),
            [
                f"A {art} of a {what}."
                for art in ("sculpture", "painting")
                for what in (
                    "seagull on a pier",
                    "seagull on a beach",
                    "poodle on a sofa",
                    "poodle in a truck",
                )
            ],
        ),
        (r"{red, pastel \, yellow} bird", ["red bird", "pastel, yellow bird"]),
        # What these pages leave open.
        ("a fox", ["a fox"]),
        ("a  fox ,", ["a  fox ,"]),
        ("{red,blue}{ fox , owl }", ["redfox", "redowl", "bluefox", "blueowl"]),
        ("a {, old} fox", ["a fox", "a old fox"]),
        ("a {red} fox, an owl", ["a {red} fox, an owl"]),
        ("a {red} {fox, owl}", ["a {red} fox", "a {red} owl"]),
        (r"a {red\, white} fox", [r"a {red\, white} fox"]),
        (r"{{a\, b, c}}", [r"{a\, b}", "{c}"]),
        (r"{x, {y\, z}}", ["x", r"{y\, z}"]),
        ("a {red, blue fox", ["a {red, blue fox"]),
        ("a red, blue} {fox, owl}", ["a red, blue} {fox, owl}"]),
        (r"\{a, b\}", [r"\{a, b\}"]),
        ("{a\n,\nb}", ["a", "b"]),
    ],
)
def test_groups_are_written_out(prompt: str, expected: list[str]) -> None:
    """Every combination, the first group slowest; what is no group stays as it is."""
    assert prompts(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a fox --repeat 3", ["a fox"] * 3),
        ("a fox --r 2 --ar 16:9", ["a fox --ar 16:9"] * 2),
        ("a fox —repeat  2", ["a fox"] * 2),
        ("a fox --repeat 1", ["a fox"]),
        ("a fox --repeat 002", ["a fox"] * 2),
        ("a {red, blue} fox --r 2", ["a red fox"] * 2 + ["a blue fox"] * 2),
        ("a fox --repeat {1, 2}", ["a fox"] * 3),
        ("a fox --{r 2, v 5}", ["a fox", "a fox", "a fox --v 5"]),
        ("a fox {--r 2, --no owl}", ["a fox", "a fox", "a fox --no owl"]),
        ("a fox --repeat", ["a fox --repeat"]),
        ("a fox --rows 4", ["a fox --rows 4"]),
        ("pre--repeat 4", ["pre--repeat 4"]),
        ("a fox --r 4.5", ["a fox --r 4.5"]),
        ("a fox, repeat 4", ["a fox, repeat 4"]),
    ],
)
def test_repeat_makes_equal_prompts_without_the_flag(prompt: str, expected: list[str]) -> None:
    """Also if an option contains the flag or its number."""
    assert prompts(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        ("{a,b}" * 40, f"stands for more than {MOST:,} prompts"),
        ("{" + ",".join("ab" * MOST) + "}", "has more than 20,000 characters"),
        ("{a,b}" + "{a,{b,c,d}}" * 8, f"stands for more than {MOST:,} prompts"),
        ("{a,b}" * 10 + " --r 10", f"stands for more than {MOST:,} prompts"),
        (f"a fox --repeat {MOST + 1}", f"stands for more than {MOST:,} prompts"),
        ("a fox --repeat " + "9" * 5000, f"stands for more than {MOST:,} prompts"),
        ("a fox --repeat 0", "has --repeat 0"),
        ("a fox --r 2 --repeat 3", "has --repeat (or --r) more than once"),
        ("a fox --r --r 2 2", "has --repeat (or --r) more than once"),
        ("{x," * 11 + "y" + "}" * 11, "has more than 10 pairs of braces inside each other"),
        ("{" * 9999 + "}" * 9999, "has more than 10 pairs of braces inside each other"),
        ("{" + "a" * 5000 + ",b" * 5000 + "}", "stands for 5,001 prompts, too many for its length"),
    ],
)
def test_too_many_prompts_are_refused_before_they_are_made(prompt: str, problem: str) -> None:
    """Counted by arithmetic: no time and no memory for what is not made."""
    started = time.perf_counter()
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=re.escape(problem)):
            expanded(prompt)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10_000_000
    assert time.perf_counter() - started < 5


def test_prompts_are_made_when_they_are_asked_for() -> None:
    """So ten thousand of them need no memory."""
    count, found = expanded("{" + ",".join(str(number) for number in range(100)) + "}" + "{a,b}")
    assert (count, next(found), next(found)) == (200, "0a", "0b")


@given(st.lists(st.lists(st.sampled_from(["a", "b c", ""]), min_size=2, max_size=3), max_size=4))
def test_several_groups_are_a_product(groups: list[list[str]]) -> None:
    """As `itertools.product` has it."""
    prompt = "-".join("{" + ",".join(options) + "}" for options in groups)
    expected = ["-".join(options) for options in itertools.product(*groups)]
    assert prompts(prompt) == [text.strip() if groups else prompt for text in expected]


@given(st.text(st.sampled_from("{},\\ a2-r"), max_size=30))
def test_an_expanded_prompt_is_not_expanded_again(prompt: str) -> None:
    """What comes out stands for itself only, so that it is not multiplied a second time."""
    try:
        found = prompts(prompt)
    except ValueError as error:
        assume("--repeat" in str(error))
        return
    for text in {*found} - {prompt}:
        try:
            assert prompts(text) == [text]
        except ValueError as error:
            assert "--repeat" in str(error)  # noqa: PT017 - the text tells which problem it is


@given(
    st.recursive(st.text("ab ", max_size=3), lambda each: st.lists(each, min_size=1, max_size=3))
)
def test_matching_braces_leave_no_job_for_midjourney(tree: str | list[object]) -> None:
    """The warning's own test finds nothing in what comes out."""

    def written(part: object) -> str:
        if isinstance(part, str):
            return part
        assert isinstance(part, list)
        return "x{" + ",".join(map(written, part)) + "}y"

    try:
        found = prompts(written(["", tree, ""]))
    except ValueError:
        return
    assert not any(has_several_jobs(TextToImage(text)) for text in found)
