"""The parts that only `manage.py serve` needs, such as the embedded PostgreSQL and the supervisor of processes."""
