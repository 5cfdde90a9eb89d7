"""Tests that start servers of their own; they run on a PostgreSQL of their own."""
