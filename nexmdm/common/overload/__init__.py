"""Protection of other work from expensive work: gates, hashing threads, shared look-ups."""
