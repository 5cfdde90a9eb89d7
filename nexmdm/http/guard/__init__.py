"""The guard, which checks each request first: its size, time, Host header, content type and client address."""
