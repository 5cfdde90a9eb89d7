"""The NexMDM project: settings, composition, and everything that belongs to both `devices` and `commands`."""
