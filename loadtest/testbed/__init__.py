"""Servers to test against: processes, HTTP connections to them, the machine they run on."""
