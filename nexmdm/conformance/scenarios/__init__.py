"""The scenarios of the conformance kit, by what they test."""
