"""Chaos runs: faults under load, and three ledgers that must agree afterwards."""
