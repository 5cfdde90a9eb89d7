"""The additions of `make run`: the embedded PostgreSQL, the supervisor, the lock on the data folder."""
