"""Attention operations: the reference, and fast implementations of it."""
