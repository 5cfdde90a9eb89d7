"""The scenarios of the conformance kit. Each module has the scenarios about one subject."""
