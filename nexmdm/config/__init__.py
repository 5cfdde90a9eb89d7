"""Variables of the environment, generated secrets, start-up checks, and the setup of the logs."""
