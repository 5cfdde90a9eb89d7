"""The verbs of the admin's client; each module is imported when one of its verbs is called."""
