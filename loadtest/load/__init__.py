"""The load test: generators, the admin's commands, targets, and the view in the terminal."""
