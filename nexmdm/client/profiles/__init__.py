"""The servers that the client knows: their profiles, their secrets, and the ids for `@last`."""
