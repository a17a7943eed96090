"""Augmentation of clips and batches."""
