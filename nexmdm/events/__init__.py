"""The event feed's reading side: what happened to the fleet, in order, for other systems."""
