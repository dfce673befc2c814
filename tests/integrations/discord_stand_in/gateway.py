"""The gateway: sessions over a websocket, which survive their connections.

https://docs.discord.com/developers/events/gateway
"""

import asyncio
import contextlib
import json
import secrets
import zlib
from collections.abc import Callable
from typing import Any

import aiohttp
import attrs
from aiohttp import web

from tests.integrations.discord_stand_in.things import Json

# What Discord usually says in HELLO. discord.py keeps to it with a thread that waits in real time.
HEARTBEAT_INTERVAL = 41.25
# discord.py gives up a connection that was silent for 60 s of the loop's time. In virtual time its
# heartbeats do not come, so we send the acknowledgements that they would have brought.
ACKNOWLEDGES_EVERY = 30.0
# Members, presences, message content: to be switched on in Discord's portal, and here they are not.
# https://docs.discord.com/developers/events/gateway#privileged-intents
PRIVILEGED = 1 << 1 | 1 << 8 | 1 << 15
# A session without a connection can be resumed for so long (Discord: "a few minutes").
RESUMABLE_FOR = 180.0


@attrs.define(eq=False)
class Session:
    """What a bot resumes: a numbered sequence of events.

    Attributes:
        id: names it in RESUME.
        events: all of them, as they are sent.
        left_at: since when it has no connection.
    """

    id: str
    connection: "Connection | None"
    events: list[Json] = attrs.field(factory=list)
    left_at: float | None = None

    async def dispatch(self, name: str, data: Json) -> None:
        """Send an event, or keep it for a resume."""
        event = {"op": 0, "t": name, "s": len(self.events) + 1, "d": data}
        self.events.append(event)
        if self.connection is not None:
            await self.connection.send(event)


@attrs.define(eq=False)
class Connection:
    """One websocket, compressed as a whole if the bot asked for that (`compress=zlib-stream`)."""

    request: web.Request
    socket: web.WebSocketResponse
    compressor: "zlib._Compress | None"

    async def send(self, payload: Json) -> None:
        """Send one payload; into a closed socket nothing."""
        text = json.dumps(payload)
        with contextlib.suppress(ConnectionError, aiohttp.ClientError):
            if self.compressor is None:
                await self.socket.send_str(text)
            else:
                packed = self.compressor.compress(text.encode())
                await self.socket.send_bytes(packed + self.compressor.flush(zlib.Z_SYNC_FLUSH))

    def drop(self) -> None:
        """Cut the connection without a word."""
        if self.request.transport is not None:
            self.request.transport.abort()


@attrs.define
class Gateway:
    """All sessions of the bot.

    Attributes:
        token: the one that IDENTIFY must bring.
        ready: makes READY's content.
        guilds: makes what GUILD_CREATE brings, for each guild.
        url: where the gateway is.
        log: what happened: "identify", "resume", "heartbeat", "invalid session".
    """

    token: str
    ready: Callable[[], Json]
    guilds: Callable[[], list[Json]]
    url: str = ""
    sessions: dict[str, Session] = attrs.field(factory=dict)
    connections: set[Connection] = attrs.field(factory=set)
    log: list[str] = attrs.field(factory=list)

    async def dispatch(self, name: str, data: Json) -> None:
        """Send an event to every session that lives."""
        now = asyncio.get_running_loop().time()
        for session in list(self.sessions.values()):
            if session.left_at is not None and now - session.left_at > RESUMABLE_FOR:
                del self.sessions[session.id]
            else:
                await session.dispatch(name, data)

    async def handle(self, request: web.Request) -> web.WebSocketResponse:
        """Serve one connection to its end."""
        # discord.py answers a close and then waits for the end of the connection.
        socket = web.WebSocketResponse(autoclose=False, timeout=0.1)
        await socket.prepare(request)
        asks_zlib = request.query.get("compress") == "zlib-stream"
        connection = Connection(request, socket, zlib.compressobj() if asks_zlib else None)
        self.connections.add(connection)
        alive = asyncio.create_task(self._keep_alive(connection))
        hello = {"heartbeat_interval": int(HEARTBEAT_INTERVAL * 1000), "_trace": []}
        await connection.send({"op": 10, "d": hello, "s": None, "t": None})
        message = None
        try:
            while (message := await socket.receive()).type is aiohttp.WSMsgType.TEXT:
                await self._take(connection, json.loads(message.data))
        finally:
            alive.cancel()
            await asyncio.wait({alive})
            self.connections.discard(connection)
            code = message.data if message and message.type is aiohttp.WSMsgType.CLOSE else None
            self._leave(connection, says_goodbye=code in (1000, 1001))
        return socket

    def _leave(self, connection: Connection, *, says_goodbye: bool) -> None:
        """Keep the session for a resume, unless the bot closed with 1000 or 1001."""
        for session in list(self.sessions.values()):
            if session.connection is connection:
                session.connection = None
                session.left_at = asyncio.get_running_loop().time()
                if says_goodbye:
                    del self.sessions[session.id]

    async def _take(self, connection: Connection, message: Json) -> None:
        data: Any = message.get("d")
        if message["op"] == 1:
            self.log.append("heartbeat")
            await connection.send({"op": 11, "d": None, "s": None, "t": None})
        elif message["op"] in (2, 6) and data["token"] != self.token:
            await connection.socket.close(code=4004, message=b"Authentication failed.")
        elif message["op"] == 2 and data["intents"] & PRIVILEGED:
            await connection.socket.close(code=4014, message=b"Disallowed intent(s).")
        elif message["op"] == 2:
            self.log.append("identify")
            await self._identify(connection)
        elif message["op"] == 6:
            await self._resume(connection, data)

    async def _identify(self, connection: Connection) -> None:
        session = Session(secrets.token_hex(16), connection)
        self.sessions[session.id] = session
        guilds = self.guilds()
        unavailable = [{"id": guild["id"], "unavailable": True} for guild in guilds]
        more = {
            "v": 10,
            "session_id": session.id,
            "session_type": "normal",
            "resume_gateway_url": self.url,
            "guilds": unavailable,
            "private_channels": [],
            "relationships": [],
        }
        await session.dispatch("READY", self.ready() | more)
        for guild in guilds:
            await session.dispatch("GUILD_CREATE", guild)

    async def _resume(self, connection: Connection, data: Json) -> None:
        """Replay what was missed, then RESUMED.

        https://docs.discord.com/developers/events/gateway#resuming
        """
        session = self.sessions.get(data["session_id"])
        if session is None or data["seq"] > len(session.events):
            self.log.append("invalid session")
            await connection.send({"op": 9, "d": False, "s": None, "t": None})
            return
        self.log.append("resume")
        session.connection, session.left_at = connection, None
        for event in session.events[data["seq"] :]:
            await connection.send(event)
        await session.dispatch("RESUMED", {"_trace": []})

    async def _keep_alive(self, connection: Connection) -> None:
        while True:
            await asyncio.sleep(ACKNOWLEDGES_EVERY)
            await connection.send({"op": 11, "d": None, "s": None, "t": None})
