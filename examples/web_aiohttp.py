"""A web application that orders pictures, with aiohttp; its page gets the state by events.

    pip install ./midapi_async
    export MIDAPI_API_KEY=… MIDAPI_JOURNAL=/var/lib/pictures/journal
    export MIDAPI_PUBLIC_URL=https://pictures.example.org/hooks/midapi
    python web_aiohttp.py

MIDAPI_JOURNAL is needed: a folder, or a postgresql:// URL. Without MIDAPI_PUBLIC_URL there are no
callbacks, and results come a little later.

The page is web_aiohttp.html, beside this file. There is no access log, because the callback URLs
in it are secret.
"""

import asyncio
import hashlib
import json
import logging
import os
import re
import secrets
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler

from midapi_async import (
    CallbackReceiver,
    ClientClosed,
    InvalidRequestError,
    KeyConflict,
    MidAPIClient,
    MidAPIError,
    PromptRefusedError,
    SubmissionUnknown,
    TaskDetails,
    TaskExpired,
    TaskFailed,
    TaskHandle,
    TaskNotFound,
    TextToImage,
    WaitTimeout,
)

log = logging.getLogger("pictures")
receiver = CallbackReceiver.from_env()  # None without MIDAPI_PUBLIC_URL
client = MidAPIClient(receiver=receiver, journal=os.environ["MIDAPI_JOURNAL"])


async def lifespan(_: web.Application) -> AsyncIterator[None]:
    async with client:
        with client.stop_on_signals():  # the server stops when open requests have ended
            yield


async def page(request: web.Request) -> web.StreamResponse:
    response = web.FileResponse(Path(__file__).with_name("web_aiohttp.html"))
    if "visitor" not in request.cookies:  # add secure=True where the page comes over https
        secret = secrets.token_urlsafe()
        response.set_cookie("visitor", secret, max_age=31_536_000, httponly=True, samesite="Lax")
    return response


def key_of(request: web.Request) -> str:
    """Who orders, and which order. If you have a login, take the user's id, and not a cookie."""
    visitor, order_id = request.cookies.get("visitor", ""), request.match_info["order_id"]
    if not visitor or not re.fullmatch("[A-Za-z0-9_-]{1,64}", order_id):
        raise web.HTTPBadRequest(text="The cookie is missing, or the order's id is wrong.")
    return f"{hashlib.sha256(visitor.encode()).hexdigest()[:16]}/{order_id}"


async def order(request: web.Request) -> web.Response:
    key = key_of(request)  # the same order again buys nothing, and gets its state
    try:
        prompt = (await request.json())["prompt"]
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise web.HTTPBadRequest(text="The prompt is missing.") from error
    try:
        result = client.generate_and_wait(TextToImage(prompt), key=key, wait_timeout=10)
        state = await state_of(result)
    except ClientClosed as error:
        if error.intent_id is None:
            raise  # nothing was bought
        state = {"state": "generating"}
    except InvalidRequestError as error:
        if isinstance(error, KeyConflict) or error.intent_id is None:
            raise
        state = await state_of(known(key))  # you have resubmitted it; dismissed: the error again
    code = 202 if state["state"] in ("generating", "unknown") else 200
    return web.json_response(state, status=code)


async def status(request: web.Request) -> web.StreamResponse:
    key = key_of(request)
    state = await state_of(known(key))
    if "text/event-stream" not in request.headers.get("Accept", ""):
        return web.json_response(state)
    head = {"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
    stream = web.StreamResponse(headers={**head, "X-Accel-Buffering": "no"})  # that is for nginx
    await stream.prepare(request)
    with suppress(ConnectionError, MidAPIError):  # the visitor has left, or this process stops
        await stream.write(b"retry: 3000\n\n")  # then the browser connects again, after 3 s
        while True:
            await stream.write(f"data: {json.dumps(state)}\n\n".encode())
            if state["state"] != "generating":
                break
            state = await state_of(waited(key))
    return stream


async def find(key: str) -> TaskHandle:
    async with asyncio.timeout(5):  # `find` waits while the order is being sent
        handle = await client.find(key)
    if handle is None:
        raise web.HTTPNotFound(text="There is no such order.")
    return handle


async def known(key: str) -> TaskDetails:
    """What is known of an order. However often this is called, MidAPI is asked once in 5 s."""
    handle = await find(key)
    try:
        details = await handle.details(max_age=5)
    except TaskNotFound:  # MidAPI may take some seconds to show a new task
        return TaskDetails(task_id=handle.task_id)
    return await handle if details.is_final else details  # TaskFailed, if it has failed


async def waited(key: str) -> TaskDetails:
    """The result of an order. However many pages wait for it, its looks are those of one wait."""
    handle = await find(key)
    return await handle.wait(timeout=20)


async def state_of(result: Awaitable[TaskDetails]) -> dict[str, object]:
    try:
        details = await result
    except TaskFailed as error:
        reason = error.details and error.details.error_message
        return {"state": "failed", "detail": reason or "No reason was given."}
    except SubmissionUnknown:  # it may have been bought, and a callback may still show that
        return {"state": "unknown"}
    except TimeoutError as error:
        if isinstance(error, WaitTimeout) and error.intent_id is None:
            raise  # nothing was bought
        return {"state": "generating"}
    return {"state": "succeeded" if details.is_final else "generating", "urls": details.urls}


def answer_to(error: MidAPIError) -> tuple[int, str]:
    """The status, and what the visitor reads: not `str(error)`, which names keys and ids."""
    match error:
        case KeyConflict():
            return 409, "This order was placed before, with another prompt."
        case InvalidRequestError(problems={"prompt": problem}):
            return 400, f"prompt: {problem}"
        case InvalidRequestError(intent_id=str()):  # you have dismissed the order
            return 410, "This order was cancelled. You may order again."
        case PromptRefusedError(message=reason):
            return 422, reason or "No reason was given."
        case TaskExpired():
            return 410, "The pictures of this order were deleted. You may order again."
        case WaitTimeout() | ClientClosed():  # too many orders at this moment; this process stops
            code = 503
        case _:  # the API key, the credits, the network, the disk: you have to look
            code = 502
    log.warning("an order failed: %s", error)  # for you; the visitor need not know why
    return code, "This is not possible now."


@web.middleware
async def failures(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPClientError as error:
        return web.json_response({"detail": error.text}, status=error.status)
    except MidAPIError as error:
        code, detail = answer_to(error)
        again = {"Retry-After": "5"} if code == 503 else None
        return web.json_response({"detail": detail}, status=code, headers=again)


app = web.Application(middlewares=[failures])
app.cleanup_ctx.append(lifespan)
app.router.add_get("/", page)
app.router.add_put("/pictures/{order_id}", order)
app.router.add_get("/pictures/{order_id}", status)
if receiver is not None:
    app.add_subapp("/hooks/midapi/", receiver.aiohttp_app())

if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=8080, access_log=None)
