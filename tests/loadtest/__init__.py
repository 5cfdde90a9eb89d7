"""The load test, the chaos runs and the trials; they run with the tests of `servers`."""
