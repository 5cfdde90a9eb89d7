"""The NexMDM project: its settings, and the code that serves both the app `devices` and the app `commands`."""
