"""The FCN papers' experiments in small, on drawn scenes: `python -m benchmarks.experiments --help`."""
