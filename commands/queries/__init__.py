"""Reads of commands and deliveries. An overdue delivery counts as expired."""
