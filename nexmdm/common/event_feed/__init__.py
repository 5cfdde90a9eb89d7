"""The event feed's writing side: code that stores a fact appends the fact's event in the same transaction."""
