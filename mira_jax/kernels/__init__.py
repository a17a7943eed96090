"""Attention operations: their meaning, and fast implementations of it."""
