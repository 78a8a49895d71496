"""Inference: sliding window, evaluation, and the record of a test."""
