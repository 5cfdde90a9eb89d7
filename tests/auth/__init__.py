"""Signatures, idempotency, rate limits, the audit."""
