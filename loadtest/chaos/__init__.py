"""Chaos runs: faults under load, and three lists of events (ledgers) that must agree after the run."""
