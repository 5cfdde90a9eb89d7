"""The rules by which two devices are the same: comparison keys of aliases and hardware ids, and the search for them."""
