"""The servers that an admin's client knows: their profiles, their secrets, and the last names that were used."""
