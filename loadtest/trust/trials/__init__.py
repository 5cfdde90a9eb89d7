"""Trials of what is promised, against real servers: what was tried, what came of it, whether it was held."""
