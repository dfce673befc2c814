"""Files: results are downloaded and checked, reference pictures are uploaded."""

from .download import download
from .fetch import Fetcher, check_file_options
from .names import DEFAULT_NAME
from .progress import Progress
from .upload import Uploader

__all__ = ["DEFAULT_NAME", "Fetcher", "Progress", "Uploader", "check_file_options", "download"]
