"""One web worker: server, HTTP protocol, guard, and the handlers of requests."""
