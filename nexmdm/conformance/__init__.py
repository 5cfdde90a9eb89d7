"""The conformance kit, which tests an agent. It has a server, scenarios and injected faults."""
