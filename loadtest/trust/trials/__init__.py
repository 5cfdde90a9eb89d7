"""The trials: one module for each family of attacks or faults."""
