"""Compiling for machines that are not there; see docs/aot.md."""
