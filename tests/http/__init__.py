"""The web worker: protocol, guard, problems, logs."""
