"""Result files: downloaded and checked, and complete at their target or not there."""

from .download import Downloader

__all__ = ["Downloader"]
