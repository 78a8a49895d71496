"""Packed copies of a dataset: memory-mapped, decoded pairs."""
