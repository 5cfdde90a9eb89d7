"""NexMDM's database backend for Django: its PostgreSQL backend with deadlines and support of poolers."""
