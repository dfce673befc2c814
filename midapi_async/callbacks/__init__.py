"""Callbacks: the receiver that takes them, its mounts for web frameworks, MidAPI's signature."""

from .._wire.protocol import Callback, read_callback
from .._wire.tokens import without_tokens
from .http.answer import Body, Headers, read_body
from .receiver import CallbackReceiver, Inbox
from .signature import sign_callback

__all__ = [
    "Body",
    "Callback",
    "CallbackReceiver",
    "Headers",
    "Inbox",
    "read_body",
    "read_callback",
    "sign_callback",
    "without_tokens",
]
