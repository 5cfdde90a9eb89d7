"""Who calls, and how often: bearer tokens, signed requests, idempotency, rate limits."""
