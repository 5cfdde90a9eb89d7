"""The read-only admin site: its pages, its home page and its logins."""
