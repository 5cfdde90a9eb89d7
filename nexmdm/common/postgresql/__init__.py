"""Django's PostgreSQL backend, extended for poolers, demoted primaries and servers that vanish without a message."""
