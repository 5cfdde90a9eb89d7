"""The admin pages of commands, deliveries, attempts and reports."""
