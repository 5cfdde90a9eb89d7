"""The trials. Each module or package has one family of attacks or faults."""
