"""The verbs of the client. Each module is imported when one of its verbs is called."""
