"""Tests of the sandbox, over real sockets and without the SDK."""
