"""Inference: load a model, score clips, export programs."""
