"""Benchmarks. Each module is a program, such as `python -m loadtest.benchmarks.one_core`."""
