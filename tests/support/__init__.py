"""Helpers for tests: actors, processes, time, the model of a delivery."""
