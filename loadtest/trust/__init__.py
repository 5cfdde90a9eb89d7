"""The promises of NexMDM, each one tested: `python -m loadtest.trust`."""
