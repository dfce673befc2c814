"""Midjourney pictures and videos from MidAPI, awaited.

async with MidAPIClient() as client:
    details = await client.generate_and_wait("a red fox in the snow", aspect_ratio="16:9")
    await client.download(details, "pictures/")
"""

# fmt: off
# isort: off
from ._tracking.schedule import Expected
from ._version import __version__
from ._wire.bodies import request_from_json, request_to_json
from .batch import Batch, BatchItem, BatchProgress, BatchRequest
from .callbacks import CallbackReceiver
from .callbacks.signature import sign_callback
from .client import ClientStats, MidAPIClient
from .config import PollPolicy, RateLimit, RetryPolicy, Timeouts
from .errors import (
    APIError, AuthenticationError, BadRequestError, ClientClosed, DownloadError,
    FeatureDisabledError, GenerationFailedError, InsufficientCreditsError, InvalidRequestError,
    JournalError, KeyConflict, MaintenanceError, MidAPIError, NotFoundError, PromptRefusedError,
    PromptRejected, ProtocolError, RateLimitError, ReceiverError, ResultExpired, ResultMissing,
    ServerError, SpendingCapError, SubmissionUnknown, TaskError, TaskExpired, TaskFailed,
    TaskNotFound, TransportError, UnexpectedContent, UnprocessableError, WaitTimeout,
)
from .files.names import ResultFile
from .files.progress import Progress
from .handle import TaskHandle
from .intents import Intents
from .journal import Intent, Journal, State
from .journal.memory import MemoryJournal
from .requests import (
    ExtendVideo, ImageFields, ImageToImage, ImageToVideo, OmniReference, Request, StyleReference,
    TextToImage, UploadedURL, Upscale, Vary,
)
from .tasks import TaskDetails, TaskStatus

__all__ = [
    "APIError", "AuthenticationError", "BadRequestError", "Batch", "BatchItem", "BatchProgress",
    "BatchRequest", "CallbackReceiver", "ClientClosed", "ClientStats", "DownloadError", "Expected",
    "ExtendVideo", "FeatureDisabledError", "GenerationFailedError", "ImageFields", "ImageToImage",
    "ImageToVideo", "InsufficientCreditsError", "Intent", "Intents", "InvalidRequestError",
    "Journal", "JournalError", "KeyConflict", "MaintenanceError", "MemoryJournal", "MidAPIClient",
    "MidAPIError", "NotFoundError", "OmniReference", "PollPolicy", "Progress", "PromptRefusedError",
    "PromptRejected", "ProtocolError", "RateLimit", "RateLimitError", "ReceiverError", "Request",
    "ResultExpired", "ResultFile", "ResultMissing", "RetryPolicy", "ServerError",
    "SpendingCapError", "State", "StyleReference", "SubmissionUnknown", "TaskDetails", "TaskError",
    "TaskExpired", "TaskFailed", "TaskHandle", "TaskNotFound", "TaskStatus", "TextToImage",
    "Timeouts", "TransportError", "UnexpectedContent", "UnprocessableError", "UploadedURL",
    "Upscale", "Vary", "WaitTimeout", "__version__", "request_from_json", "request_to_json",
    "sign_callback",
]
