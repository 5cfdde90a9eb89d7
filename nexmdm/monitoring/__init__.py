"""Figures about the running system: Prometheus metrics, dispatcher status, fleet summary."""
