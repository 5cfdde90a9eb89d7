"""The simulated fleet: its registration, its seeding, and the file with its credentials."""
