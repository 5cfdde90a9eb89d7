"""One web worker, from the socket to the view: server, protocol, guard, handlers."""
