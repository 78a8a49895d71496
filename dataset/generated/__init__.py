"""Datasets that are drawn by this program."""
