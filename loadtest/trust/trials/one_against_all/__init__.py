"""One against all: a phone, a client or an answer that goes wrong, beside honest traffic that must not notice."""
