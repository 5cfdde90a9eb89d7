"""Writing of events. Code that stores a fact appends the fact's event in the same transaction."""
