"""Bodies of phones: values that are not valid are repaired or dropped, in fields that only inform the server."""
