"""Submitting: at most one accepted POST per intent."""
