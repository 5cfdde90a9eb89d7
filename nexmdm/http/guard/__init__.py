"""The outermost layer: sizes, times, Host, content type, the client's address."""
