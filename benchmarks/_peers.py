"""Other SDKs, each pointed at the same local server: one POST and one GET of each.

The extra ``bench`` installs them all.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import import_module
from importlib.metadata import version

import attrs

from _raw import API_KEY, PROMPT


@attrs.frozen
class Peer:
    """One SDK.

    Attributes:
        name: as it is called on PyPI.
        submit: one POST that orders a picture.
        look: one GET that returns its state.
        post: what `submit` calls.
        get: what `look` calls.
    """

    name: str
    submit: Callable[[], Awaitable[object]]
    look: Callable[[], Awaitable[object]]
    post: str
    get: str


@asynccontextmanager
async def _fal(url: str) -> AsyncIterator[Peer]:
    fal = import_module("fal_client")
    # It takes no base URL.
    vars(import_module("fal_client.client"))["QUEUE_URL_FORMAT"] = f"{url}/fal/"
    client = fal.AsyncClient(key=API_KEY)
    yield Peer(
        "fal-client",
        lambda: client.submit("owner/app", {"prompt": PROMPT}),
        lambda: client.status("owner/app", "r"),
        "submit",
        "status",
    )
    await (await client._client).aclose()


@asynccontextmanager
async def _replicate(url: str) -> AsyncIterator[Peer]:
    client = import_module("replicate").Client(API_KEY, base_url=f"{url}/replicate")
    yield Peer(
        "replicate",
        lambda: client.predictions.async_create("v", {"prompt": PROMPT}),
        lambda: client.predictions.async_get("p"),
        "predictions.async_create",
        "predictions.async_get",
    )
    await client._async_client.aclose()


@asynccontextmanager
async def _openai(url: str) -> AsyncIterator[Peer]:
    openai = import_module("openai")
    async with openai.AsyncOpenAI(api_key=API_KEY, base_url=f"{url}/openai") as client:
        yield Peer(
            "openai",
            lambda: client.images.generate(prompt=PROMPT, model="gpt-image-1"),
            lambda: client.videos.retrieve("v"),
            "images.generate",
            "videos.retrieve",
        )


@asynccontextmanager
async def _runwayml(url: str) -> AsyncIterator[Peer]:
    runwayml = import_module("runwayml")
    order = {"model": "gen4_image", "prompt_text": PROMPT, "ratio": "1920:1080"}
    async with runwayml.AsyncRunwayML(api_key=API_KEY, base_url=f"{url}/runwayml") as client:
        yield Peer(
            "runwayml",
            lambda: client.text_to_image.create(**order),
            lambda: client.tasks.retrieve("r"),
            "text_to_image.create",
            "tasks.retrieve",
        )


_MAKERS = {"fal-client": _fal, "replicate": _replicate, "openai": _openai, "runwayml": _runwayml}


@asynccontextmanager
async def peers(url: str) -> AsyncIterator[list[Peer]]:
    """Those that are installed; a line is printed for each of the others."""
    async with AsyncExitStack() as exits:
        found = []
        for name, maker in _MAKERS.items():
            try:
                found.append(await exits.enter_async_context(maker(url)))
            except ImportError:
                print(f"{name} is not installed and left out")
        yield found


def versions(*names: str) -> dict[str, str]:
    """The versions of what was measured."""
    return {name: version(name) for name in names}
