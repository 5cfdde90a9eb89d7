"""The command-line client for admins, and the simulated phone; both use only HTTP."""
