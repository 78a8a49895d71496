"""Sweeps and studies: many runs, and tables and plots of their figures."""
