"""Commands: issue, push, reports, lists, retention."""
