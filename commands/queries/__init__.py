"""Reads of commands and deliveries. A delivery past its time counts as expired."""
