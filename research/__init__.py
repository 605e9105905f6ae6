"""Measurements of our own: ablations of the method, and the benchmarks behind `run.py bench`."""
