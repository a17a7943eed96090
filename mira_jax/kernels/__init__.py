"""Attention operations: their meaning in plain JAX."""
