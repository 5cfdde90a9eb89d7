"""The trials: tests of promises against real servers. Each module or package has one family of attacks or faults."""
