import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, Header, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from midapi_async import (
    CallbackReceiver,
    ClientClosed,
    InvalidRequestError,
    KeyConflict,
    MidAPIClient,
    MidAPIError,
    SubmissionUnknown,
    TaskDetails,
    TaskFailed,
    TaskNotFound,
    WaitTimeout,
)

STATUS: dict[type[MidAPIError], int] = {  # the first that fits
    KeyConflict: 409,
    InvalidRequestError: 422,
    TaskFailed: 422,  # the same key tells the same again: a new try needs a new one
    TaskNotFound: 404,
    SubmissionUnknown: 503,  # perhaps it was bought: the same key again tells, and buys nothing
    ClientClosed: 503,
    MidAPIError: 503,  # the key, the credits, the service, the disk: yours to see to, not theirs
}
log = logging.getLogger("pictures")
receiver = CallbackReceiver.from_env()  # None without MIDAPI_PUBLIC_URL: then it only looks


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with MidAPIClient(receiver=receiver, journal=os.environ["MIDAPI_JOURNAL"]) as client:
        app.state.client = client
        # uvicorn lets open requests end before it ends the lifespan: they must not wait so long.
        with client.stop_on_signals():
            yield


app = FastAPI(lifespan=lifespan)
if receiver is not None:
    app.mount("/hooks/midapi", receiver.asgi())


def client_of(request: Request) -> MidAPIClient:
    client: MidAPIClient = request.app.state.client
    return client


Client = Annotated[MidAPIClient, Depends(client_of)]


class Order(BaseModel):
    prompt: str


@app.post("/pictures")
async def order(
    order: Order, idempotency_key: Annotated[str, Header()], client: Client
) -> Response:
    # Where there are users, put theirs before it: what has one key is one picture, for everybody.
    try:
        details = await client.generate_and_wait(order.prompt, key=idempotency_key, wait_timeout=25)
    except (WaitTimeout, ClientClosed) as error:  # with a task id it was bought, and goes on
        if error.task_id is None:
            raise
        place = {"Location": f"pictures/{error.task_id}"}  # also behind a prefix
        return JSONResponse({"task_id": error.task_id}, 202, headers=place)
    return JSONResponse(shown(details))


@app.get("/pictures/{task_id}")
async def status(task_id: str, client: Client) -> Response:
    # Whoever knows a task id may see it here; whose task it is, is for you to remember and check.
    return JSONResponse(shown(await client.details(task_id, max_age=5)))


def shown(details: TaskDetails) -> dict[str, object]:
    return {"task_id": details.task_id, "status": details.status, "urls": details.urls}


@app.exception_handler(MidAPIError)
async def failed(_: Request, error: MidAPIError) -> Response:
    code = next(code for kind, code in STATUS.items() if isinstance(error, kind))
    if code < 500:
        return JSONResponse({"error": str(error)}, code)
    log.warning("an order failed: %s", error)  # for you; the visitor need not know why
    return JSONResponse({"error": "not possible just now"}, code, headers={"Retry-After": "30"})
