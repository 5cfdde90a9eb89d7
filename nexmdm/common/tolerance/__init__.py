"""Bodies of phones: informative fields that do not fit are repaired or dropped."""
