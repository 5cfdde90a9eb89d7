"""The load test: `python -m loadtest`."""

from loadtest.load.command import main

if __name__ == "__main__":
    main()
