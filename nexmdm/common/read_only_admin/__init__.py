"""Base classes of the read-only admin pages: keyset lists, filters, CSV export."""
