"""Authentication and its limits: bearer tokens, signed requests, idempotency, rate limits."""
