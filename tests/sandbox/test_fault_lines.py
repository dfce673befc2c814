"""Rules that are written as text mean what the same rule means in Python."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from midapi_async.sandbox import (
    OPERATIONS,
    Action,
    CallbackAction,
    Faults,
    Rule,
    Sandbox,
    TaskAction,
    acknowledge_first,
    add_fault,
    answer_code,
    answer_status,
    bad_task_id,
    change_urls,
    cut,
    delay,
    describe_faults,
    drip,
    duplicate,
    fail_task,
    faults,
    garbage,
    gone,
    hang,
    huge,
    lose_answer,
    old_timestamp,
    other_content,
    raw_answer,
    redirect,
    reset,
    take,
    variant,
)
from midapi_async.sandbox._delivery import Delivery
from midapi_async.sandbox._hints import Outcome
from tests.sandbox.world import CREDIT, api_of

SAME = [
    ("submit lose_answer", Faults().on("submit", do=lose_answer())),
    ("submit lose_answer nth=2", Faults().on("submit", nth=2, do=lose_answer())),
    ("look hang nth=1,4", Faults().on("look", nth=(1, 4), do=hang())),
    (
        "look hang nth=2-5 accepted=no",
        Faults().on("look", nth=range(2, 6), do=hang(accepted=False)),
    ),
    ("look reset first=3 per=task", Faults().on("look", first=3, per="task", do=reset())),
    ("look delay 2.5 task=abc", Faults().on("look", task="abc", do=delay(2.5))),
    ("look answer_code 422 chance=0.1", Faults().on("look", chance=0.1, do=answer_code(422))),
    (
        "credit answer_status 503 page=yes during=5-30.5",
        Faults().on("credit", during=(5, 30.5), do=answer_status(503, page=True)),
    ),
    (
        "submit answer_status 429 'too often' retry_after=7",
        Faults().on("submit", do=answer_status(429, "too often", retry_after="7")),
    ),
    ("file cut 1000 declared=no", Faults().on("file", do=cut(1000, declared=False))),
    ("file drip seconds=0.5 piece=10", Faults().on("file", do=drip(piece=10, seconds=0.5))),
    ("file huge size=5", Faults().on("file", do=huge(5))),
    ("file gone 410", Faults().on("file", do=gone(410))),
    (
        "file other_content text/html <b>",
        Faults().on("file", do=other_content("text/html", b"<b>")),
    ),
    (
        r"look raw_answer 'HTTP/1.1 200 OK\r\n\r\n' accepted=no",
        Faults().on("look", do=raw_answer(b"HTTP/1.1 200 OK\r\n\r\n", accepted=False)),
    ),
    ("submit redirect to=http://a/?b=c", Faults().on("submit", do=redirect(to="http://a/?b=c"))),
    ("submit garbage html", Faults().on("submit", do=garbage("html"))),
    ("submit bad_task_id path", Faults().on("submit", do=bad_task_id("path"))),
    ("look variant flag_null", Faults().on("look", do=variant("flag_null"))),
]
# Their actions hold functions, which are not equal: the value that they make is.
SAME_CHANGES = [
    ("task fail_task 'a b' code=501 flag=2", fail_task("a b", code=501, flag=2)),
    ("task fail_task code=E7", fail_task(code="E7")),
    ("task take 3", take(3)),
    ("callback acknowledge_first", acknowledge_first()),
    ("callback duplicate 3", duplicate(3)),
    ("callback old_timestamp -60", old_timestamp(-60)),
    ("callback change_urls http://a/?b=c http://d", change_urls("http://a/?b=c", "http://d")),
]


def rule_of(line: str) -> Rule:
    """Give the one rule that a line adds."""
    plan = Faults()
    add_fault(plan, line)
    (rule,) = plan.rules
    return rule


def values(rule: Rule) -> tuple[object, ...]:
    """Give all that a rule is made of; rules themselves are equal to nothing."""
    limits = rule.nth, rule.per_task, rule.task, rule.chance, rule.when, rule.during
    return rule.operation, rule.actions, limits


@pytest.mark.parametrize(("line", "plan"), SAME, ids=[line for line, _ in SAME])
def test_a_line_is_the_rule_that_it_names(line: str, plan: Faults) -> None:
    """Arguments by place or by name, quotes, and every limit."""
    assert values(rule_of(line)) == values(plan.rules[0])


def changed(action: Action) -> object:
    """Give what an action makes of the usual outcome, or of the usual delivery."""
    if isinstance(action, TaskAction):
        return action.change(Outcome(60))
    assert isinstance(action, CallbackAction)
    return action.change(Delivery())


@pytest.mark.parametrize(("line", "action"), SAME_CHANGES, ids=[line for line, _ in SAME_CHANGES])
async def test_a_line_changes_a_task_or_a_callback(line: str, action: Action) -> None:
    """It makes the same outcome or the same delivery."""
    (made,) = rule_of(line).actions
    assert changed(made) == changed(action)
    assert changed(made) not in (Outcome(60), Delivery())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "unknown operation ''; choose from submit, look"),
        ("submt lose_answer", "unknown operation 'submt'; choose from submit, look"),
        ("submit", "unknown action '' for submit; choose from answer_code"),
        ("submit lose", "unknown action 'lose' for submit; choose from .*lose_answer"),
        ("task lose_answer", "unknown action 'lose_answer' for task; choose from fail_task"),
        ("look rewrite x", "unknown action 'rewrite' for look"),
        ("look huge", "makes no sense for look; only for file"),
        ("file cut", r"missing a required argument: 'after'; write: cut AFTER \[declared=yes\]"),
        ("submit lose_answer nht=2", "too many positional arguments; write: lose_answer"),
        ("look cut 5 after=6", "multiple values for argument 'after'"),
        ("look cut five", "after must be a number, not 'five'"),
        ("look cut 5 declared=maybe", "declared must be yes or no, not 'maybe'"),
        ("look hang nth=0", "nth and first count from 1"),
        ("look hang nth=a", "nth must be a number, not 'a'"),
        ("look hang nth=5-3", "nth and first count from 1"),
        ("look hang chance=2", "chance must be between 0 and 1"),
        ("look hang per=week", "per must be 'task'"),
        ("look hang during=5", "during must be a number, not ''"),
        ("look hang during=5-4", "during must be two times"),
        ("look variant flag", "unknown variant 'flag'; choose from codes_as_strings"),
        ("look 'hang", "No closing quotation"),
    ],
)
def test_a_line_that_cannot_be_meant(line: str, words: str) -> None:
    """The error says what could be, and nothing is added."""
    plan = Faults()
    with pytest.raises(ValueError, match=words):
        add_fault(plan, line)
    assert not plan.rules


@settings(deadline=None, max_examples=300)
@example("look hang first=" + "9" * 5000)
@given(
    st.lists(
        st.sampled_from(
            [*OPERATIONS, "hang", "cut", "fail_task", "late", "variant", "5", "nth=1-", "=", "a=b"]
        )
        | st.text(max_size=8),
        max_size=5,
    ).map(" ".join)
)
def test_any_text_is_a_rule_or_a_value_error(line: str) -> None:
    """Whatever is typed, there is one rule more, or an error that can be shown."""
    plan = Faults()
    try:
        add_fault(plan, line)
    except ValueError:
        assert not plan.rules
    else:
        assert len(plan.rules) == 1


def test_the_description_names_everything() -> None:
    """Each action, each limit and each kind, on lines that fit a terminal of 80 columns."""
    text = describe_faults()
    words = set(text.replace(",", " ").split())
    named = {name for name in faults.__all__ if name.islower()} - {"rewrite"}
    assert not named - words
    assert not {*OPERATIONS, *faults.GARBAGE, *faults.VARIANTS, *faults.BAD_TASK_IDS} - words
    assert max(map(len, text.splitlines())) <= 80
    assert "`" not in text


async def test_a_line_strikes() -> None:
    """Over a socket: the second request for the credits."""
    plan = Faults()
    add_fault(plan, "credit answer_status 418 nth=2")
    seen = []
    async with Sandbox(faults=plan) as sandbox, api_of(sandbox) as api:
        for _ in range(3):
            async with api.session.get(CREDIT) as answer:
                seen.append(answer.status)
    assert seen == [200, 418, 200]
