"""The network between the client and the server: connections, TLS and proxies."""
