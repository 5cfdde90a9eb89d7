"""The way to a server: kept connections, TLS, the proxy of the environment."""
