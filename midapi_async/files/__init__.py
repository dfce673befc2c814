"""Files: results are downloaded and checked, and complete at their target or not there."""

from .download import download
from .fetch import Fetcher, check_file_options
from .names import DEFAULT_NAME
from .progress import Progress

__all__ = ["DEFAULT_NAME", "Fetcher", "Progress", "check_file_options", "download"]
