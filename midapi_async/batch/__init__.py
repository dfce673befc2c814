"""Batches: many requests, each bought once, and their results as they become ready."""

from .items import BatchItem, BatchProgress, BatchRequest
from .run import Batch

__all__ = ["Batch", "BatchItem", "BatchProgress", "BatchRequest"]
