"""Measurements, run by hand: `python -m benchmarks.micro`, `python -m benchmarks.serve`. The product imports none."""
