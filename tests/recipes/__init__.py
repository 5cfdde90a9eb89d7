"""Tests of docs/operations/recipes: each program runs against the real API and small local receivers."""
