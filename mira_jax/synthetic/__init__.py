"""Synthetic faces: procedural clips and the dataset made of them."""
