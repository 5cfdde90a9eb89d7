"""Load tests, benchmarks, chaos runs and trust trials.

They run against real servers, and are not part of the product.
"""
