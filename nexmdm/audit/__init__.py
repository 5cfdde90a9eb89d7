"""The audit of signed writes, and the verification of the audit chain."""
