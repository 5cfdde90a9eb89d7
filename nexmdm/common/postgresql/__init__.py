"""NexMDM's database backend: Django's PostgreSQL backend with deadlines and with support of poolers."""
