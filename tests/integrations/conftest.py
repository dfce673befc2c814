import logging
from collections.abc import AsyncIterator

import pytest

from tests.integrations.discord_stand_in import DiscordStandIn


@pytest.fixture
async def stand_in(caplog: pytest.LogCaptureFixture) -> AsyncIterator[DiscordStandIn]:
    """A local Discord. A test that provokes a mistake of the bot takes it out of `mistakes`."""
    async with DiscordStandIn() as stand_in:
        yield stand_in
    assert stand_in.mistakes == []
    text = "\n".join(map(logging.Formatter().format, caplog.get_records("call")))
    shown = [secret for secret in stand_in.secrets() if secret in text]
    assert not shown, f"tokens in the log:\n{text}"
