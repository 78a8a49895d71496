"""Preparing and checking a dataset before training."""
