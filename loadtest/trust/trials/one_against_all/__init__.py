"""Trials of one attacker: a phone, a client or an odd answer of FCM must not affect the requests of others."""
