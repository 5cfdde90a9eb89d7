"""The conformance kit: a server, injected faults and scenarios that test an agent."""
