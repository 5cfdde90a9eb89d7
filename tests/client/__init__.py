"""The command-line client and the simulated phone."""
