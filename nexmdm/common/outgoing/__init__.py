"""HTTP requests of NexMDM to other services."""
