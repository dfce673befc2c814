"""Files: results are downloaded and checked, reference pictures are uploaded."""

from .download import download_files
from .fetch import Fetcher, check_file_options
from .names import DEFAULT_NAME, ResultFile, task_of
from .progress import Progress
from .upload import Uploader

__all__ = [
    "DEFAULT_NAME",
    "Fetcher",
    "Progress",
    "ResultFile",
    "Uploader",
    "check_file_options",
    "download_files",
    "task_of",
]
