"""The figures in Markdown pages, filled from raw results. `python -m benchmarks.figures` is the command."""
