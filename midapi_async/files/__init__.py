"""Result files: fetched, checked, and whole at their target or not there."""

from .download import Downloader

__all__ = ["Downloader"]
