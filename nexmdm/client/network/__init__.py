"""The network between client and server: kept connections, TLS, the proxy of the environment."""
