"""A proxy that gives answers to the wrong requests, as one whose connections are out of step does.

It doubles an answer, so that the second one is read as the answer to the next request on that
connection; or it delivers an old answer or a page before the real one, or a refusal behind it.
"""

import asyncio
import random
import re
from collections import Counter

from tests.support.loopback import LoopbackServer
from tests.support.scripted import ScriptedServer

REFUSAL = b"""HTTP/1.1 200 OK\r
Content-Type: application/json\r
Content-Length: 37\r
\r
{"code":402,"msg":"no","data":  null}"""
PAGE = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 13\r\n\r\n<html></html>"

TRICKS = ("doubled", "old one first", "page first", "refusal behind")


class MixingProxy(LoopbackServer):
    """Passes each request on, and mixes up the answers while it is told to.

    Args:
        target: the server.
        chance: decides what happens to each answer.

    Attributes:
        mixes: whether answers are mixed up now.
        remembers: whether answers are kept, to be delivered again.
        tricks: how many answers were doubled, and how many old ones were delivered.
    """

    def __init__(self, target: ScriptedServer, chance: random.Random) -> None:
        super().__init__()
        self.mixes = False
        self.remembers = True
        self.tricks: Counter[str] = Counter()
        self._target = target
        self._chance = chance
        self._old: list[bytes] = []  # answers that may be delivered again

    @property
    def url(self) -> str:
        """The base URL to use in the server's place."""
        return f"http://127.0.0.1:{self.port}"

    async def _stop(self) -> None:
        await super()._stop()
        await self._server.wait_closed()

    async def idle(self) -> None:
        """Wait until every connection is closed."""
        while self._connections:
            await asyncio.wait(self._connections)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server = await asyncio.open_connection("127.0.0.1", self._target.port)
        try:
            while True:
                request = await _message(reader)
                server.write(request)
                answer = await _message(server_reader)
                for each in self._mixed(request, answer):
                    writer.write(each)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # one end is gone, so the other goes, too
        finally:
            server.close()

    def _mixed(self, request: bytes, answer: bytes) -> list[bytes]:
        """What is delivered in an answer's place."""
        answers = [answer]
        if self.mixes and self._old:
            trick = self._chance.choice(("none", "none", *TRICKS))
            if trick == "doubled":
                answers = [answer, answer]
            elif trick == "old one first":
                # A submission's answer is no record, so it is given to submissions only.
                old = [
                    each
                    for each in self._old[-20:]
                    if request.startswith(b"POST") or b"successFlag" in each
                ]
                answers = [self._chance.choice(old or [PAGE]), answer]
            elif trick == "page first":
                answers = [PAGE, answer]
            elif trick == "refusal behind":  # which would free the key, were it read as a POST's
                answers = [answer, REFUSAL]
            self.tricks[trick] += 1
        if self.remembers and b"taskId" in answer:
            self._old.append(answer)
        return answers


async def _message(reader: asyncio.StreamReader) -> bytes:
    """A whole request or answer; its body has a Content-Length."""
    head = await reader.readuntil(b"\r\n\r\n")
    size = re.search(rb"content-length: *([0-9]+)", head, re.IGNORECASE)
    return head + (await reader.readexactly(int(size[1])) if size else b"")
