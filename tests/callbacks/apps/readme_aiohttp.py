import json
import logging
import os
from collections.abc import AsyncIterator

from aiohttp import web
from aiohttp.typedefs import Handler

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
    TextToImage,
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
CLIENT = web.AppKey("CLIENT", MidAPIClient)
log = logging.getLogger("pictures")
receiver = CallbackReceiver.from_env()  # None without MIDAPI_PUBLIC_URL: then it only looks


async def with_client(app: web.Application) -> AsyncIterator[None]:
    async with MidAPIClient(receiver=receiver, journal=os.environ["MIDAPI_JOURNAL"]) as client:
        app[CLIENT] = client
        yield


async def stop_waiting(app: web.Application) -> None:
    """Open requests end before the client is closed: let them not wait so long."""
    app[CLIENT].stop_waiting()


async def order(request: web.Request) -> web.Response:
    try:
        request_of = TextToImage((await request.json())["prompt"])
        key = request.headers["Idempotency-Key"]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise web.HTTPBadRequest(text="a JSON prompt and an Idempotency-Key are needed") from error
    # Where there are users, put theirs before it: what has one key is one picture, for everybody.
    try:
        details = await request.app[CLIENT].generate_and_wait(request_of, key=key, wait_timeout=25)
    except (WaitTimeout, ClientClosed) as error:  # with a task id it was bought, and goes on
        if error.task_id is None:
            raise
        place = {"Location": f"pictures/{error.task_id}"}  # also behind a prefix
        return web.json_response({"task_id": error.task_id}, status=202, headers=place)
    return web.json_response(shown(details))


async def status(request: web.Request) -> web.Response:
    # Whoever knows a task id may see it here; whose task it is, is for you to remember and check.
    details = await request.app[CLIENT].details(request.match_info["task_id"], max_age=5)
    return web.json_response(shown(details))


def shown(details: TaskDetails) -> dict[str, object]:
    return {"task_id": details.task_id, "status": details.status, "urls": details.urls}


@web.middleware
async def failures(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except MidAPIError as error:
        code = next(code for kind, code in STATUS.items() if isinstance(error, kind))
        if code < 500:
            return web.json_response({"error": str(error)}, status=code)
        log.warning("an order failed: %s", error)  # for you; the visitor need not know why
        told = {"error": "not possible just now"}
        return web.json_response(told, status=code, headers={"Retry-After": "30"})


app = web.Application(middlewares=[failures])
app.cleanup_ctx.append(with_client)
app.on_shutdown.append(stop_waiting)
app.router.add_post("/pictures", order)
app.router.add_get("/pictures/{task_id}", status)
if receiver is not None:
    app.add_subapp("/hooks/midapi/", receiver.aiohttp_app())

if __name__ == "__main__":
    web.run_app(app, port=8080, access_log=None)  # an access log would show callback URLs
