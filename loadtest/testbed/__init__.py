"""The servers of tests: their processes, HTTP connections to them, and the machine on which they run."""
