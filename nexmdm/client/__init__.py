"""The command-line client for admins, and the simulated phone. Both use only HTTP."""
