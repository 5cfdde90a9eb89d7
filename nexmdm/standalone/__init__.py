"""What `make run` adds: the embedded PostgreSQL, the supervisor, the lock on the data folder."""
