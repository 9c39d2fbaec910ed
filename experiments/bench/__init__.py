"""Benchmarks, ``python -m experiments.bench SUITE --out DIR``; a suite is a module with ``run``."""
