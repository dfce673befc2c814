"""A web application that orders pictures, with FastAPI; its page asks for the state of its order.

    pip install ./midapi_async fastapi uvicorn
    export MIDAPI_API_KEY=… MIDAPI_JOURNAL=/var/lib/pictures/journal
    export MIDAPI_PUBLIC_URL=https://pictures.example.org/hooks/midapi
    uvicorn web_fastapi:app --workers 4 --timeout-graceful-shutdown 20 --no-access-log

MIDAPI_JOURNAL is needed: a folder, or a postgresql:// URL. Without MIDAPI_PUBLIC_URL there are no
callbacks, and results come a little later.

The page is web_fastapi.html, beside this file. There is no access log, because the callback URLs
in it are secret.
"""

import asyncio
import hashlib
import logging
import os
import secrets
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from fastapi import Body, Cookie, Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from pydantic import StringConstraints

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
    TaskNotFound,
    WaitTimeout,
)

log = logging.getLogger("pictures")
receiver = CallbackReceiver.from_env()  # None without MIDAPI_PUBLIC_URL
client = MidAPIClient(receiver=receiver, journal=os.environ["MIDAPI_JOURNAL"])


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with client:
        with client.stop_on_signals():  # uvicorn stops when open requests have ended
            yield


app = FastAPI(lifespan=lifespan)
if receiver is not None:
    app.mount("/hooks/midapi", receiver.asgi())


def user_of(visitor: Annotated[str, Cookie()]) -> str:
    """Who orders. If you have a login, return the user's id; here a random cookie stands for it."""
    return hashlib.sha256(visitor.encode()).hexdigest()[:16]


User = Annotated[str, Depends(user_of)]
OrderId = Annotated[str, StringConstraints(pattern="^[A-Za-z0-9_-]{1,64}$")]


@app.get("/")
async def page(request: Request) -> Response:
    response = FileResponse(Path(__file__).with_name("web_fastapi.html"))
    if "visitor" not in request.cookies:  # add secure=True where the page comes over https
        secret = secrets.token_urlsafe()
        response.set_cookie("visitor", secret, max_age=31_536_000, httponly=True, samesite="lax")
    return response


@app.put("/pictures/{order_id}")
async def order(
    order_id: OrderId, prompt: Annotated[str, Body(embed=True)], user: User
) -> Response:
    key = f"{user}/{order_id}"  # the same order again buys nothing, and gets its state
    try:
        state = await state_of(client.generate_and_wait(prompt, key=key, wait_timeout=10))
    except ClientClosed as error:
        if error.intent_id is None:
            raise  # nothing was bought
        state = {"state": "generating"}
    except InvalidRequestError as error:
        if isinstance(error, KeyConflict) or error.intent_id is None:
            raise
        state = await state_of(known(key))  # you have resubmitted it; dismissed: the error again
    return JSONResponse(state, 202 if state["state"] in ("generating", "unknown") else 200)


@app.get("/pictures/{order_id}")
async def status(order_id: OrderId, user: User) -> dict[str, object]:
    return await state_of(known(f"{user}/{order_id}"))


async def known(key: str) -> TaskDetails:
    """What is known of an order. However often this is called, MidAPI is asked once in 5 s."""
    async with asyncio.timeout(5):  # `find` waits while the order is being sent
        handle = await client.find(key)
    if handle is None:
        raise HTTPException(404, "There is no such order.")
    try:
        details = await handle.details(max_age=5)
    except TaskNotFound:  # MidAPI may take some seconds to show a new task
        return TaskDetails(task_id=handle.task_id)
    return await handle if details.is_final else details  # TaskFailed, if it has failed


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


@app.exception_handler(MidAPIError)
async def failed(_: Request, error: MidAPIError) -> Response:
    code, detail = answer_to(error)
    again = {"Retry-After": "5"} if code == 503 else None
    return JSONResponse({"detail": detail}, code, headers=again)


@app.exception_handler(RequestValidationError)
async def malformed(_: Request, error: RequestValidationError) -> Response:
    problems = [f"{each['loc'][-1]}: {each['msg']}" for each in error.errors()]
    return JSONResponse({"detail": "; ".join(problems)}, 400)
