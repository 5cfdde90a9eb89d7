"""What keeps expensive work from harming the rest: gates, hashing threads, shared look-ups."""
