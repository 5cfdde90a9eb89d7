"""HTTP requests from NexMDM to other services."""
