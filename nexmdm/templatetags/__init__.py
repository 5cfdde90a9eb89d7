"""The template filters of the admin site."""
