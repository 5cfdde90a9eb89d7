"""The trust run: `python -m loadtest.trust`, or `make trust`."""

import sys

from loadtest.trust.promises import main

if __name__ == "__main__":
    sys.exit(main())
