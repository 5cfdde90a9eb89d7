"""The two errors that end a request before the application runs."""

from nexmdm.common.problems import Problem


class Refused(Exception):
    """The guard refuses the request with a problem. `drain` is true if a part of its body has not arrived yet."""

    def __init__(self, problem: Problem, *, drain: bool = False) -> None:
        self.problem = problem
        self.drain = drain


class ClientGone(Exception):
    """The client disconnected before its request was complete, so no answer is sent."""
