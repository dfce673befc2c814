"""A web application without asyncio that orders pictures: the client runs in a thread of its own.

    pip install ./midapi_async
    export MIDAPI_API_KEY=… MIDAPI_JOURNAL=/var/lib/pictures/journal
    export MIDAPI_PUBLIC_URL=https://pictures.example.org/hooks/midapi
    python web_wsgi.py

MIDAPI_JOURNAL is needed: a folder, or a postgresql:// URL. Without MIDAPI_PUBLIC_URL there are no
callbacks, and results come a little later.

It is plain WSGI, with the server of the standard library; what it does in `run` and `callback` is
the same in Flask and Django.
"""

import asyncio
import json
import os
import re
import signal
import threading
from collections.abc import Coroutine, Iterable
from http import HTTPStatus
from socketserver import ThreadingMixIn
from typing import Any, TypeVar
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from midapi_async import (
    CallbackReceiver,
    InvalidRequestError,
    KeyConflict,
    MidAPIClient,
    MidAPIError,
    PromptRefusedError,
    SubmissionUnknown,
    TaskDetails,
    TaskExpired,
    TaskNotFound,
    TextToImage,
    WaitTimeout,
)

T = TypeVar("T")
HOOK = "/hooks/midapi/"
receiver = CallbackReceiver.from_env()  # None without MIDAPI_PUBLIC_URL
client = MidAPIClient(receiver=receiver, journal=os.environ["MIDAPI_JOURNAL"])
loop = asyncio.new_event_loop()


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in the client's event loop, and wait for it in the thread of a request."""
    return asyncio.run_coroutine_threadsafe(work, loop).result()


def callback(environ: WSGIEnvironment, token: str) -> int:
    """Give a callback to the receiver; it passes it on to the client's event loop by itself."""
    if receiver is None:
        return 404
    headers = {
        name.removeprefix("HTTP_").replace("_", "-"): value
        for name, value in environ.items()
        if name.startswith("HTTP_")
    }
    return asyncio.run(receiver.handle(token, headers, body_of(environ)))


def body_of(environ: WSGIEnvironment) -> bytes:
    length = environ.get("CONTENT_LENGTH", "")
    body: bytes = environ["wsgi.input"].read(min(int(length), 65_537) if length.isdecimal() else 0)
    return body


def request_of(environ: WSGIEnvironment) -> TextToImage:
    try:
        prompt = json.loads(body_of(environ))["prompt"]
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError({"prompt": "is missing"}) from error
    return TextToImage(prompt)


async def known(key: str) -> TaskDetails | None:
    """What is known of an order. However often this is called, MidAPI is asked once in 5 s."""
    handle = await client.find(key)
    if handle is None:
        return None
    try:
        return await handle.details(max_age=5)
    except TaskNotFound:  # MidAPI may take some seconds to show a new task
        return TaskDetails(task_id=handle.task_id)


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
    return 503, "This is not possible now."


def answer(environ: WSGIEnvironment, path: str) -> tuple[int, dict[str, object]]:
    """The status and the JSON for a request."""
    order = path.removeprefix("/pictures/")
    if not re.fullmatch("[A-Za-z0-9]{1,64}", order):
        return 404, {"detail": "There is no such page."}
    key = f"{environ.get('REMOTE_USER', 'anybody')}/{order}"  # of your login
    try:
        if environ["REQUEST_METHOD"] == "PUT":
            # A request blocks a thread: it does not wait for the pictures.
            run(client.generate(request_of(environ), key=key, timeout=10))
            return 202, {"state": "generating"}
        details = run(known(key))
    except SubmissionUnknown:  # it may have been bought, and a callback may still show that
        return 202, {"state": "unknown"}
    except MidAPIError as error:
        if isinstance(error, WaitTimeout) and error.intent_id is not None:  # it is being sent
            return 202, {"state": "generating"}
        code, detail = answer_to(error)
        if code == 503:
            environ["wsgi.errors"].write(f"an order failed: {error}\n")
        return code, {"detail": detail}
    if details is None:
        return 404, {"detail": "There is no such order."}
    return 200, {"state": details.status, "urls": details.urls, "detail": details.error_message}


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    path = environ["PATH_INFO"]
    if path.startswith(HOOK) and environ["REQUEST_METHOD"] == "POST":
        status, said = callback(environ, path.removeprefix(HOOK)), b""
    else:
        status, fields = answer(environ, path)
        said = json.dumps(fields).encode()
    start_response(f"{status} {HTTPStatus(status).phrase}", [("Content-Type", "application/json")])
    return [said]


class Server(ThreadingMixIn, WSGIServer):
    """A thread for each request."""


class Quiet(WSGIRequestHandler):
    def log_request(self, *_: object) -> None:
        """Nothing: the paths of callbacks are secret."""


def stop(*_: object) -> None:
    loop.call_soon_threadsafe(client.stop_waiting)  # open requests end
    threading.Thread(target=server.shutdown).start()


if __name__ == "__main__":
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    run(client.open())
    with make_server(
        "127.0.0.1", int(os.environ.get("PORT", "8080")), application, Server, Quiet
    ) as server:
        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        server.serve_forever()
    run(client.aclose())
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
