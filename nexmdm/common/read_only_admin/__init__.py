"""Base classes of the read-only admin pages: lists, filters and CSV export."""
