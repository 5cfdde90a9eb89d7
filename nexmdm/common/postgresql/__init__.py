"""Django's PostgreSQL backend for databases as people have them: behind poolers, demoted, or gone without a word."""
