"""Push through FCM: the outbox, the dispatcher, retries, the circuit breaker."""
