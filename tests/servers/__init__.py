"""Tests that start their own servers, on their own PostgreSQL."""
