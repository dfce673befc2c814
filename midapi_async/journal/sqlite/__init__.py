"""The journal in a folder: it outlives its process, and all processes of a machine share it."""

from .journal import SQLiteJournal

__all__ = ["SQLiteJournal"]
