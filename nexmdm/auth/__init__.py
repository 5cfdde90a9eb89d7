"""Authentication and its limits: bearer tokens, signed requests, idempotency keys, rate limits."""
