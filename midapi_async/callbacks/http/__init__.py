"""Callbacks over HTTP: what every mount shares, the mounts, and the standalone server."""
