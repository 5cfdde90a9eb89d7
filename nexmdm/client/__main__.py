"""The entry point of the program `nexmdm`, also for `python -m nexmdm.client`."""

import importlib
import signal


def main() -> None:
    """Import the client and run it. Ctrl-C during the import ends the process without a traceback."""
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)
    program = importlib.import_module("nexmdm.client.program")
    signal.signal(signal.SIGINT, handler)
    program.main()


if __name__ == "__main__":
    main()
