"""The read-only admin site: its pages, dashboard and sessions."""
