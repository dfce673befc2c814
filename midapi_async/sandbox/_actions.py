"""What a fault does: to a request's answer, to a task, to a callback."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, Final

from aiohttp import hdrs, web
from attrs import field, frozen

from midapi_async.sandbox import _wire
from midapi_async.sandbox._delivery import Delivery
from midapi_async.sandbox._envelope import Refused, json_answer, refusal
from midapi_async.sandbox._exchange import Exchange, body_of, head_of
from midapi_async.sandbox._garbage import GARBAGE, STATUS_LINE
from midapi_async.sandbox._hints import Outcome
from midapi_async.sandbox._variants import Edit

REQUESTS: Final = ("submit", "look", "credit", "download_url", "upload", "file")
JSON_REQUESTS: Final = REQUESTS[:-1]
OPERATIONS: Final = (*REQUESTS, "task", "callback")

_CHUNK: Final = 65_536


class Action:
    """What a rule does; `operations` are those it makes sense for."""

    operations: ClassVar[tuple[str, ...]] = REQUESTS


class RequestAction(Action, ABC):
    """An action on one HTTP request."""

    @abstractmethod
    async def play(self, exchange: Exchange) -> web.StreamResponse:
        """Answer the request, or break it; the response of a broken one is never sent."""


class TaskAction(Action, ABC):
    """An action on an accepted task's outcome."""

    operations = ("task",)

    @abstractmethod
    def change(self, outcome: Outcome) -> Outcome:
        """Give the outcome that the task is to have instead."""


class CallbackAction(Action, ABC):
    """An action on the callback of one task."""

    operations = ("callback",)

    @abstractmethod
    def change(self, delivery: Delivery) -> Delivery:
        """Give the way in which the callback is to be sent instead."""


# ------------------------------------------------------------------- the connection


@frozen
class Close(RequestAction):
    """Close without a byte of an answer."""

    accepted: bool

    async def play(self, exchange: Exchange) -> web.StreamResponse:
        """Handle it if it is to be accepted, then close."""
        await exchange.handle_if(accepted=self.accepted)
        return exchange.close()


@frozen
class Reset(RequestAction):
    """Reset the connection: before the body is read, or after all was done."""

    accepted: bool

    async def play(self, exchange: Exchange) -> web.StreamResponse:
        """Handle it if it is to be accepted, then reset."""
        await exchange.handle_if(accepted=self.accepted)
        return exchange.reset()


@frozen
class Hang(RequestAction):
    """Never answer; the connection stays open until the sandbox stops."""

    accepted: bool

    async def play(self, exchange: Exchange) -> web.StreamResponse:
        """Handle it if it is to be accepted, then wait for the end."""
        await exchange.handle_if(accepted=self.accepted)
        await exchange.clock.stopped.wait()
        return exchange.reset()


@frozen
class Delay(RequestAction):
    """Handle the request at once and answer later."""

    seconds: float

    async def play(self, exchange: Exchange) -> web.StreamResponse:
        """Handle it, wait, answer."""
        response = await exchange.handle()
        await exchange.clock.sleep(self.seconds)
        return response


@frozen
class Cut(RequestAction):
    """Send the head and the first bytes of the body, then close."""

    after: int
    declared: bool

    async def play(self, exchange: Exchange) -> web.StreamResponse:
        """Claim the whole length, or none, and send less."""
        response = await exchange.handle()
        body = body_of(response)
        # At least one byte is missing, else nothing would be cut.
        exchange.write(head_of(response, max(len(body), self.after + 1) if self.declared else None))
        exchange.write(body[: self.after])
        return exchange.close()


@frozen
class Drip(RequestAction):
    """Send the body slowly, in pieces of one size."""

    piece: int
    seconds: float

    async def play(self, exchange: Exchange) -> web.StreamResponse:
        """Send a piece, wait, send the next, while anybody listens."""
        response = await exchange.handle()
        body = body_of(response)
        exchange.write(head_of(response, len(body)))
        for start in range(0, len(body), self.piece):
            if exchange.gone:
                break
            exchange.write(body[start : start + self.piece])
            await exchange.clock.sleep(self.seconds)
        return exchange.close()


@frozen
class Raw(RequestAction):
    """Write given bytes onto the connection and close it."""

    data: bytes = field(repr=False)
    accepted: bool

    async def play(self, exchange: Exchange) -> web.StreamResponse:
        """Handle it if it is to be accepted, then write what was given."""
        await exchange.handle_if(accepted=self.accepted)
        exchange.write(self.data)
        return exchange.close()


# ----------------------------------------------------------------------- the answer


@frozen
class Garbage(RequestAction):
    """A 200 whose body is something else."""

    kind: str
    accepted: bool

    async def play(self, exchange: Exchange) -> web.StreamResponse:
        """Handle it if it is to be accepted, then answer the garbage made of the answer."""
        if self.accepted:
            body = body_of(await exchange.handle())
        else:
            body = body_of(json_answer({"code": _wire.OK, "msg": "success", "data": None}))
        content_type, spoil = GARBAGE[self.kind]
        return web.Response(body=spoil(body), content_type=content_type)


@frozen
class Answer(RequestAction):
    """An envelope with a code, or a page that is not MidAPI's, with an HTTP status."""

    code: int
    msg: str | None
    status: int
    headers: Mapping[str, str] = field(factory=dict)
    page: bool = False
    accepted: bool = False

    async def play(self, exchange: Exchange) -> web.StreamResponse:
        """Handle it if it is to be accepted, then answer this."""
        await exchange.handle_if(accepted=self.accepted)
        refused = Refused(self.code, self.msg, status=self.status)
        response = refusal(refused, exchange.request.path)
        if self.page:
            page = f"<html><body><h1>{self.status}</h1><p>proxy</p></body></html>"
            response = web.Response(text=page, status=self.status, content_type="text/html")
        response.headers.update(self.headers)
        return response


@frozen
class Redirect(RequestAction):
    """Send the client elsewhere, or to the same place once more."""

    status: int
    to: str | None
    accepted: bool

    async def play(self, exchange: Exchange) -> web.StreamResponse:
        """Handle it if it is to be accepted, then redirect."""
        await exchange.handle_if(accepted=self.accepted)
        location = self.to or exchange.request.path_qs
        return web.Response(status=self.status, headers={hdrs.LOCATION: location})


@frozen
class Rewrite(RequestAction):
    """Change the envelope of the true answer."""

    operations = JSON_REQUESTS
    edit: Edit

    async def play(self, exchange: Exchange) -> web.StreamResponse:
        """Handle it and answer what the edit makes of a success."""
        response = await exchange.handle()
        envelope = json.loads(body_of(response))
        if envelope.get("code") != _wire.OK:
            return response
        return json_answer(self.edit(envelope), status=response.status)


# -------------------------------------------------------------------------- files


@frozen
class OtherContent(RequestAction):
    """Something else in the file's place."""

    operations = ("file",)
    content_type: str
    body: bytes = field(repr=False)

    async def play(self, exchange: Exchange) -> web.StreamResponse:  # noqa: ARG002  nothing of it
        """Answer the other content."""
        return web.Response(body=self.body, headers={hdrs.CONTENT_TYPE: self.content_type})


@frozen
class Huge(RequestAction):
    """A file that goes on for some bytes after the end of its picture."""

    operations = ("file",)
    size: int
    declared: bool

    async def play(self, exchange: Exchange) -> web.StreamResponse:
        """Send the true file, then zeros, while anybody listens."""
        true = await exchange.handle()
        response = web.StreamResponse(headers={hdrs.CONTENT_TYPE: true.content_type})
        if self.declared:
            response.content_length = self.size
        await response.prepare(exchange.request)
        left, chunk = self.size, body_of(true)[: self.size]
        while chunk and not exchange.gone:
            await response.write(chunk)
            left -= len(chunk)
            chunk = bytes(min(left, _CHUNK))
        return response


# --------------------------------------------------------------- tasks and callbacks


@frozen
class ChangeTask(TaskAction):
    """Change an outcome by a function."""

    name: str
    how: Callable[[Outcome], Outcome] = field(repr=False)

    def change(self, outcome: Outcome) -> Outcome:
        """Give what the function makes of it."""
        return self.how(outcome)


@frozen
class ChangeCallback(CallbackAction):
    """Change a delivery by a function."""

    name: str
    how: Callable[[Delivery], Delivery] = field(repr=False)

    def change(self, delivery: Delivery) -> Delivery:
        """Give what the function makes of it."""
        return self.how(delivery)


RAW_STATUS_LINE: Final = STATUS_LINE
