"""The simulated fleet: enrollment, seeding, and the file that holds its credentials."""
