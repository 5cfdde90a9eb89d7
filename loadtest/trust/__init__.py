"""The promises of NexMDM, each with its tests: `python -m loadtest.trust`."""
