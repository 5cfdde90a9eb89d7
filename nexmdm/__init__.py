"""The NexMDM project: settings, composition, and what belongs to neither `devices` nor `commands` alone."""
