"""Load tests, benchmarks, chaos runs and trust trials, against real servers; not part of the product."""
