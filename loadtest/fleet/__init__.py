"""The simulated fleet: enrollment, seeding, and the file with its credentials."""
