"""One against all: a phone, a client or an odd answer of FCM, next to honest traffic that must not be affected."""
