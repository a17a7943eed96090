"""Proof that the numbers agree with the reference and with PyTorch."""
