"""The audit log of signed writes, and the verification of its hash chain."""
