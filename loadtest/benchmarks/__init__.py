"""Benchmarks, each a module to run: `python -m loadtest.benchmarks.one_core`."""
