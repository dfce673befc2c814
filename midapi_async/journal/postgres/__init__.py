"""The journal in a PostgreSQL database: any number of machines share it."""

from .journal import PostgresJournal

__all__ = ["PostgresJournal"]
