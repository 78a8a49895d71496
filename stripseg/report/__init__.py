"""Reports of tests and runs: records, intervals, pages, comparisons, curves."""
