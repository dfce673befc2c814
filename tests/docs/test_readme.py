"""What the README shows: its web application, and the table of requests, also on its page."""

import attrs
import pytest

import midapi_async
from midapi_async.sandbox import Faults, SandboxThread, lose_answer
from midapi_async.sandbox.pytest_plugin import midapi_sandbox
from tests.callbacks.serving import ask, uvicorn_serving
from tests.docs.blocks import REPOSITORY, blocks
from tests.docs.tables import codes, rows
from tests.docs.test_blocks import elsewhere, execute
from tests.support.waiting import wait_until

__all__ = ["elsewhere", "midapi_sandbox"]

LOSES_ONE = Faults().on("submit", when=lambda call: "lost" in str(call.body), do=lose_answer())
README = (REPOSITORY / "README.md").read_text("utf-8")


@pytest.mark.real_time
@pytest.mark.slow
@pytest.mark.midapi_sandbox(time_scale=600, faults=LOSES_ONE)
def test_the_web_application_takes_an_order_and_shows_it(midapi_sandbox: SandboxThread) -> None:
    """The same order twice is one task; each mistake of a visitor has a status of its own."""
    name = "takes_an_order_and_shows_it"
    [program] = [each for each in blocks("README.md") if each.about.endswith(name)]
    orders: list[tuple[str, dict[str, str]]] = [
        ("1", {"prompt": "a red fox"}),
        ("1", {"prompt": "a red fox"}),
        ("1", {"prompt": "an owl"}),
        ("2", {"prompt": ""}),
        ("2", {}),
        ("3", {"prompt": "a lost fox"}),
    ]
    with uvicorn_serving(execute(program.text)["app"]) as port:
        answers = [ask(port, "PUT", f"/pictures/{order}", body) for order, body in orders]
        answers.append(ask(port, "GET", "/pictures/none"))

        def is_there() -> bool:
            return b'"succeeded"' in ask(port, "GET", "/pictures/1").body

        wait_until(is_there)
        shown = ask(port, "GET", "/pictures/1").json
        lost = ask(port, "GET", "/pictures/3")
    assert [answer.status for answer in answers] == [202, 202, 400, 400, 422, 202, 404]
    assert isinstance(shown, dict)
    assert (len(shown["urls"]), shown["reason"]) == (4, None)
    assert (lost.status, lost.json) == (202, {"status": "unknown"})
    assert len(midapi_sandbox.ledger.accepted) == 2


@pytest.mark.parametrize("page", ["README.md", "docs/requests.md"])
def test_every_request_is_in_the_table_with_its_fields(page: str) -> None:
    """Fields in their order; "the same" is the row above."""
    fields: list[str] = []
    named: dict[str, list[str]] = {}
    for first, _, last in rows(page, "request"):
        name, _, required = codes(first)[0].partition("(")
        fields = (fields if "the same" in last else []) + codes(last)
        named[name] = required.rstrip(")").split(", ") + fields
    for name, names in named.items():
        real = {field.name for field in attrs.fields(getattr(midapi_async, name))}
        assert set(names) == real - {"water_mark", "extra"}, name
    assert len(named) == 8


def test_it_is_short() -> None:
    """What is longer belongs on a page of docs/."""
    assert README.count("\n") < 275
