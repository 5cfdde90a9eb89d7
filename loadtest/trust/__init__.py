"""The promises of NexMDM, each put to the test: `python -m loadtest.trust`."""
