"""The servers of tests: their processes, the HTTP connections to them, and their machine."""
