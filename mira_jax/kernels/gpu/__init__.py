"""Pallas Mosaic GPU kernels for NVIDIA Hopper."""
