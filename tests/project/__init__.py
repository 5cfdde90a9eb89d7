"""The project itself: documents, migrations, architecture, settings."""
