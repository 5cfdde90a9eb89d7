"""Configuration: environment variables, generated secrets, start-up checks, logging."""
