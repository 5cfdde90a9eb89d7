"""Figures about the running server: metrics, dispatchers, the summary of the fleet, push health."""
