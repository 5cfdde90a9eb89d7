"""Pushes through FCM: the outbox, the dispatcher, retries, and the circuit breaker."""
