"""The pages of the web applications in `examples`, in headless Chromium.

Outside CI they are skipped where Chromium or Playwright is missing, as the gallery's tests.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import aiohttp
import pytest
from aiohttp import web

from midapi_async.sandbox import Faults, SandboxThread, answer_code, delay, lose_answer
from tests.callbacks.serving import EXAMPLES, aiohttp_serving
from tests.callbacks.test_mounts_programs import (
    CANCELLED,
    FOX,
    PROGRAMS,
    SENSITIVE,
    Decide,
    decide,
    running,
)
from tests.support.browser import DESKTOP, PHONE, browser, found_by_axe, new_page
from tests.support.waiting import free_port, wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

__all__ = ["browser", "decide"]  # fixtures

pytestmark = [
    pytest.mark.real_time,
    pytest.mark.slow,
    pytest.mark.one_python,
]
of_both = pytest.mark.parametrize("name", PROGRAMS)
Open = Callable[..., "Page"]
SCALE = 20.0  # an order then waits half a second
MAKING, DONE = "Your pictures are being made", "Here are your pictures"


@pytest.fixture
def open_page(browser: "Browser") -> Iterator[Open]:
    """Opens the page of a program that runs; at the end no page may have an error of its own."""
    errors: list[str] = []
    pages: list[Page] = []

    def open_at(port: int, size: tuple[int, int] = DESKTOP, path: str = "") -> "Page":
        pages.append(page := new_page(browser, size, "light"))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"http://127.0.0.1:{port}/{path}")
        return page

    yield open_at
    for page in pages:
        page.context.close()
    assert not errors


def order(page: "Page", prompt: str) -> None:
    """Fill in the form, and press the button twice."""
    page.get_by_label("What shall it show?").fill(prompt)
    page.get_by_role("button", name="Order").dblclick()


def says(page: "Page", text: str) -> None:
    """Wait until the page says this."""
    page.get_by_role("status").filter(has_text=text).wait_for()


def pictures(page: "Page") -> list[str]:
    """Wait until the pictures are loaded; their texts for screen readers."""
    says(page, DONE)
    images = page.get_by_role("img")
    images.nth(3).wait_for()
    page.wait_for_function("[...document.images].every(image => image.naturalWidth > 50)")
    return [str(image.get_attribute("alt")) for image in images.all()]


EXPECTED = [f"{FOX}, picture {number} of 4" for number in (1, 2, 3, 4)]


@of_both
def test_a_double_click_and_reloads_buy_once(name: str, tmp_path: Path, open_page: Open) -> None:
    """It says that it is being made, before and after a reload, and then shows four pictures."""
    with (
        SandboxThread(time_scale=SCALE, auto=False) as sandbox,
        running(name, sandbox, tmp_path, scale=SCALE) as (port, _),
    ):
        page = open_page(port)
        order(page, FOX)
        says(page, MAKING)
        assert page.get_by_role("button").is_disabled()
        page.reload()
        says(page, MAKING)
        assert page.get_by_label("What shall it show?").input_value() == FOX
        [accepted] = sandbox.ledger.accepted
        sandbox.finish(accepted.task_id)
        assert pictures(page) == EXPECTED
        page.reload()
        assert pictures(page) == EXPECTED
        assert len(sandbox.ledger.accepted) == 1
        # A second order of the same prompt is another one, and so is that of another visitor.
        order(page, FOX)
        wait_until(lambda: len(sandbox.ledger.accepted) == 2)
        assert open_page(port).get_by_role("status").text_content() == ""
        # Without its cookie the page forgets an order that has ended, and does not buy it again.
        sandbox.finish(sandbox.ledger.accepted[-1].task_id)
        assert pictures(page) == EXPECTED
        page.context.clear_cookies()
        page.reload()
        page.wait_for_function("localStorage.getItem('order') === 'null'")
        assert page.get_by_role("status").text_content() == ""
        assert len(sandbox.ledger.accepted) == 2


@of_both
def test_a_failed_task_and_a_refused_prompt_show_the_reason(
    name: str, tmp_path: Path, open_page: Open
) -> None:
    """After either, the visitor can order again."""
    plan = Faults().on(
        "submit", when=lambda call: "rude" in str(call.body), do=answer_code(400, SENSITIVE)
    )
    plan.on("submit", nth=3, do=answer_code(402))
    with (
        SandboxThread(time_scale=SCALE, faults=plan) as sandbox,
        running(name, sandbox, tmp_path, scale=SCALE) as (port, _),
    ):
        page = open_page(port)
        order(page, f"{FOX} [[sandbox: fail=no fox was found; seconds=20]]")
        says(page, "The order has failed: no fox was found")
        order(page, "a rude fox")
        says(page, SENSITIVE)
        page.reload()
        assert page.get_by_role("status").text_content() == ""
        order(page, FOX)
        says(page, "This is not possible now.")
        order(page, FOX)
        assert pictures(page) == EXPECTED
        assert len(sandbox.ledger.accepted) == 2


@of_both
def test_a_page_goes_on_after_a_restart_of_the_server(
    name: str, tmp_path: Path, open_page: Open
) -> None:
    """Without a reload; it was stopped while the page waited, or before the order was sent."""
    port = free_port()
    with SandboxThread(time_scale=SCALE, auto=False) as sandbox:
        with running(name, sandbox, tmp_path, scale=SCALE, port=port):
            page = open_page(port)
            order(page, FOX)
            says(page, MAKING)
        [accepted] = sandbox.ledger.accepted
        with running(name, sandbox, tmp_path, scale=SCALE, port=port):
            sandbox.finish(accepted.task_id)
            assert pictures(page) == EXPECTED
        order(page, "an owl")
        says(page, "Your order is being sent")
        page.wait_for_timeout(500)
        with running(name, sandbox, tmp_path, scale=SCALE, port=port):
            says(page, MAKING)
        assert len(sandbox.ledger.accepted) == 2


@of_both
def test_an_order_that_has_to_wait_and_one_whose_answer_is_lost(
    name: str, tmp_path: Path, open_page: Open
) -> None:
    """The first is sent until it is taken; the second is sent once, and shown by its callback."""
    must_wait = True
    plan = Faults().on("submit", when=lambda call: "lost" in str(call.body), do=lose_answer())
    plan.on("submit", when=lambda _: must_wait, do=answer_code(429))
    with (
        SandboxThread(time_scale=SCALE, faults=plan, auto=False) as sandbox,
        running(name, sandbox, tmp_path, scale=SCALE) as (port, _),
    ):
        page = open_page(port)
        order(page, FOX)
        says(page, "Many orders at this moment")
        must_wait = False
        says(page, MAKING)
        sandbox.finish(sandbox.ledger.accepted[0].task_id)
        assert pictures(page) == EXPECTED
        order(page, "a lost fox")
        says(page, "It is not certain that your order has arrived.")
        page.reload()
        says(page, "It is not certain that your order has arrived.")
        sandbox.finish(sandbox.ledger.accepted[1].task_id)
        says(page, DONE)
        assert len(sandbox.ledger.accepted) == 2


@of_both
def test_an_order_that_was_dismissed_can_be_ordered_again(
    name: str, tmp_path: Path, open_page: Open, decide: Decide
) -> None:
    """The page that waits for it says that it was cancelled; a click orders with another id."""
    plan = Faults().on("submit", do=lose_answer(), nth=1)
    with (
        SandboxThread(time_scale=SCALE, faults=plan, auto=False) as sandbox,
        running(name, sandbox, tmp_path, scale=SCALE) as (port, _),
    ):
        page = open_page(port)
        order(page, FOX)
        says(page, "It is not certain that your order has arrived.")
        decide("dismiss")
        says(page, CANCELLED)
        order(page, FOX)
        says(page, MAKING)
        [_, accepted] = sandbox.ledger.accepted
        sandbox.finish(accepted.task_id)
        assert pictures(page) == EXPECTED


@of_both
def test_an_order_that_is_refused_after_it_was_answered_says_why(
    name: str, tmp_path: Path, open_page: Open
) -> None:
    """The first answer is 202, since MidAPI's refusal comes later than that."""
    plan = Faults().on("submit", first=1, do=delay(30))
    with (
        SandboxThread(time_scale=SCALE, faults=plan, credits=0) as sandbox,
        running(name, sandbox, tmp_path, scale=SCALE) as (port, _),
    ):
        page = open_page(port)
        order(page, FOX)
        says(page, MAKING)
        says(page, "This is not possible now.")
        assert not sandbox.ledger.accepted


def proxy_to(port: int) -> web.Application:
    """A reverse proxy that takes /shop/ away and passes on what comes as it comes."""

    async def forward(request: web.Request) -> web.StreamResponse:
        url = f"http://127.0.0.1:{port}/{request.match_info['path']}"
        async with (
            aiohttp.ClientSession() as session,
            session.request(
                request.method, url, headers=request.headers, data=await request.read()
            ) as answer,
        ):
            response = web.StreamResponse(status=answer.status, headers=answer.headers)
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
        return response

    app = web.Application()
    app.router.add_route("*", "/shop/{path:.*}", forward)
    return app


@of_both
def test_it_works_behind_a_prefix(name: str, tmp_path: Path, open_page: Open) -> None:
    """The page, the state and the callbacks: each through a proxy that removes /shop/."""
    port, public = free_port(), free_port()
    hook = f"http://127.0.0.1:{public}/shop/hooks/midapi"
    with (
        SandboxThread(time_scale=SCALE, auto=False) as sandbox,
        running(name, sandbox, tmp_path, scale=SCALE, port=port, MIDAPI_PUBLIC_URL=hook),
        aiohttp_serving(proxy_to(port), public),
    ):
        page = open_page(public, path="shop/")
        order(page, FOX)
        says(page, MAKING)
        sandbox.finish(sandbox.ledger.accepted[0].task_id)
        assert pictures(page) == EXPECTED
        assert [each.status for each in sandbox.ledger.callbacks] == [200]
        page.close()


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing(size: tuple[int, int], tmp_path: Path, open_page: Open) -> None:
    """On the form, while it waits, and with the pictures; nothing is wider than the screen.

    The other program's page looks the same.
    """
    with (
        SandboxThread(time_scale=SCALE, auto=False) as sandbox,
        running("fastapi", sandbox, tmp_path, scale=SCALE) as (port, _),
    ):
        page = open_page(port, size)

        def check() -> None:
            schemes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
            for scheme in schemes:
                page.emulate_media(color_scheme=scheme)
                assert not found_by_axe(page), scheme
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

        check()
        order(page, FOX)
        says(page, MAKING)
        check()
        sandbox.finish(sandbox.ledger.accepted[0].task_id)
        assert pictures(page) == EXPECTED
        check()


def test_the_two_pages_differ_only_in_how_they_follow_an_order() -> None:
    """So that what is mended in one is mended in the other."""

    def rest(program: str) -> list[str]:
        page = (EXAMPLES / f"web_{program}.html").read_text("utf-8")
        before, _, behind = page.partition("  // An order is followed")
        return [before, behind.partition("\n  }\n\n")[2]]

    assert rest("aiohttp") == rest("fastapi")
    assert len(rest("aiohttp")[1]) > 500
