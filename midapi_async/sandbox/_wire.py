"""The sandbox's own table of MidAPI's wire: paths, fields' values, codes and texts.

Written down a second time on purpose. A fake that shared the client's constants would
share its spelling mistakes, and the real service ignores a misspelt field in silence.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

GENERATE: Final = "/api/v1/mj/generate"
UPSCALE: Final = "/api/v1/mj/generateUpscale"
VARY: Final = "/api/v1/mj/generateVary"
EXTEND: Final = "/api/v1/mj/generateVideoExtend"
SUBMITS: Final = (GENERATE, UPSCALE, VARY, EXTEND)

RECORD_INFO: Final = "/api/v1/mj/record-info"
CREDITS: Final = ("/api/v1/common/credit", "/api/v1/chat/credit")
DOWNLOAD_URL: Final = "/api/v1/common/download-url"
STREAM_UPLOAD: Final = "/api/file-stream-upload"
BASE64_UPLOAD: Final = "/api/file-base64-upload"
URL_UPLOAD: Final = "/api/file-url-upload"
UPLOADS: Final = (STREAM_UPLOAD, BASE64_UPLOAD, URL_UPLOAD)

RESULT_FILES: Final = "/m"
UPLOADED_FILES: Final = "/u"
DOWNLOAD_LINKS: Final = "/d"

IMAGE_TYPES: Final = ("mj_txt2img", "mj_img2img", "mj_style_reference", "mj_omni_reference")
VIDEO_TYPES: Final = ("mj_video", "mj_video_hd")
EXTEND_TYPES: Final = ("mj_video_extend_manual", "mj_video_extend_auto")
# The taskType of these two was never recorded; the names follow those of the others.
UPSCALE_TYPE: Final = "mj_upscale"
VARY_TYPE: Final = "mj_vary"
MOVING_TYPES: Final = VIDEO_TYPES + EXTEND_TYPES

SPEEDS: Final = ("relaxed", "fast", "turbo")
DEFAULT_SPEED: Final = "fast"
# These types are refused without a speed; for an omni reference the default was stored.
SPEED_TYPES: Final = ("mj_txt2img", "mj_img2img", "mj_style_reference")
DOCUMENTED_SPEEDS: Final[Mapping[str, str]] = MappingProxyType(
    {"relaxed": "Relax", "fast": "Fast", "turbo": "Turbo"}
)
ASPECT_RATIOS: Final = (
    *("1:2", "9:16", "2:3", "3:4", "5:6", "6:5"),
    *("4:3", "3:2", "1:1", "16:9", "2:1"),
)
PROMPT_LIMIT: Final = 2000

GENERATING: Final = 0
SUCCEEDED: Final = 1
FAILED: Final = 2
GENERATION_FAILED: Final = 3

OK: Final = 200
BAD_REQUEST: Final = 400
UNAUTHORIZED: Final = 401
NO_CREDITS: Final = 402
FORBIDDEN: Final = 403
NOT_FOUND: Final = 404
TOO_LARGE: Final = 413
UNPROCESSABLE: Final = 422
TOO_OFTEN: Final = 429
SERVER_ERROR: Final = 500

RECORD_IS_NULL: Final = "recordInfo is null"
TEXTS: Final[Mapping[int, str]] = MappingProxyType(
    {
        200: "success",
        400: "Bad request",
        401: "You do not have access permissions",
        402: (
            "Credits insufficient : Your current balance isn't enough to run this request. "
            "Please top up to continue."
        ),
        403: "The link has expired",
        404: "Task not found",
        422: RECORD_IS_NULL,
        429: "Your call frequency is too high. Please try again later.",
        433: "The spending cap of this API key is reached",
        455: "The service is under maintenance",
        500: "Server exception, please try again later",
        501: "Generation failed",
        505: "This feature is disabled",
    }
)
NO_SPEED: Final = "The speed parameter is incorrect."
NO_RESPONSE: Final = "No response from MidJourney Official Website after multiple attempts."
CANNOT_FETCH: Final = "Failed to fetch the reference image."
CALLBACK_FAILED: Final = "Image generation failed"
CALLBACK_VIDEO_FAILED: Final = "Video generation failed"

TIMESTAMP_HEADER: Final = "X-Webhook-Timestamp"
SIGNATURE_HEADER: Final = "X-Webhook-Signature"

MINUTE: Final = 60.0
DAY: Final = 86_400.0
RESULTS_KEPT: Final = 15 * DAY
UPLOADS_KEPT: Final = 3 * DAY
DOWNLOAD_LINK_KEPT: Final = 20 * MINUTE
CALLBACK_TIMEOUT: Final = 15.0
CALLBACK_RETRIES: Final = (1 * MINUTE, 5 * MINUTE, 15 * MINUTE)
WINDOW: Final = 10.0
WINDOW_SUBMITS: Final = 20

ANY: Final = "*"
# Seconds in the middle by (task type, speed); "*" is any. Images as recorded, the rest guessed.
DURATIONS: Final[Mapping[tuple[str, str], float]] = MappingProxyType(
    {
        (ANY, "turbo"): 30.0,
        (ANY, "fast"): 60.0,
        (ANY, "relaxed"): 250.0,
        ("mj_omni_reference", ANY): 250.0,
        ("mj_video", ANY): 180.0,
        ("mj_video_hd", ANY): 180.0,
        ("mj_video_extend_manual", ANY): 180.0,
        ("mj_video_extend_auto", ANY): 180.0,
    }
)
# Credits by (task type, speed). Documented for images only; a video's is for each of its batch.
# An extension's is what two users say.
PRICES: Final[Mapping[tuple[str, str], float]] = MappingProxyType(
    {
        (ANY, "relaxed"): 3.0,
        (ANY, "fast"): 8.0,
        (ANY, "turbo"): 16.0,
        (UPSCALE_TYPE, ANY): 3.0,
        ("mj_video", ANY): 15.0,
        ("mj_video_hd", ANY): 45.0,
        ("mj_video_extend_manual", ANY): 60.0,
        ("mj_video_extend_auto", ANY): 60.0,
    }
)
