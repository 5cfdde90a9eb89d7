"""The load test: generators, the admin's commands, targets, the view in the terminal."""
