"""Figures in Markdown pages, filled from raw results by `python -m benchmarks.figures`."""
