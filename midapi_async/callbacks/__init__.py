"""Callbacks come in here, as hints: the receiver, its mounts, and MidAPI's signature."""

from .receiver import CallbackReceiver
from .signature import sign_callback

__all__ = ["CallbackReceiver", "sign_callback"]
