"""The expected state and outcome of a command, by the states of its deliveries: a second definition, for the tests."""


def expected(kinds: set[str], *, was_cancelled: bool) -> tuple[str, str | None]:
    """Return the state and the outcome of a command whose deliveries have exactly these states."""
    if kinds & {"pending", "received"}:
        return "open", None
    has_expired = bool(kinds & {"expired", "overdue"})
    outcome = "partial" if "succeeded" in kinds else "failed" if "failed" in kinds else "cancelled"
    if kinds == {"succeeded"}:
        outcome = "succeeded"
    elif outcome == "cancelled" and has_expired:
        outcome = "expired"
    if was_cancelled or outcome == "cancelled":
        return "cancelled", outcome
    return ("expired" if outcome == "expired" else "completed"), outcome
