"""Measures the real processes, each figure beside a floor of the same run: ``python -m benchmarks``."""
