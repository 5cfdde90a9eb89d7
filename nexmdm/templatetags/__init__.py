"""What the templates of the admin site use."""
