"""Comparison keys of aliases and hardware ids, the search for devices, and warnings about devices that are the same."""
