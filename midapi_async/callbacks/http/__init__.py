"""Callbacks over HTTP: applications to mount in a web framework, and a server of our own."""
