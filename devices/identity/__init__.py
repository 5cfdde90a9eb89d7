"""The identity of devices: comparison keys, aliases, the search, and warnings about duplicate devices."""
