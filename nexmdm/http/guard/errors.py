"""The errors that end a request before the application runs."""

from nexmdm.common.problems import Problem


class Refused(Exception):
    """The guard refuses the request. `drain` is true if a part of the request's body may not have arrived yet."""

    def __init__(self, problem: Problem, *, drain: bool = False) -> None:
        self.problem = problem
        self.drain = drain


class ClientGone(Exception):
    """The client disconnected before its request was complete. No answer is sent."""
