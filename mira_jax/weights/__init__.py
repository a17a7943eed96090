"""Weights files, read and written: ours and those of other programs."""
