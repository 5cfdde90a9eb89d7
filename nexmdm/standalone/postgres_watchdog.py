"""The watchdog that stops the embedded PostgreSQL after a `serve` that was killed.

`serve` starts `python -m nexmdm.standalone.postgres_watchdog <data folder>`. Serve and its children have the other end
of the watchdog's standard input, which ends when the last of them has ended.
"""

import sys
from pathlib import Path

from nexmdm.standalone import embedded_postgres, instance_lock


def main() -> None:
    """Wait for the end of serve and its children, then stop PostgreSQL, unless a new serve has the lock."""
    data_dir = Path(sys.argv[1])
    sys.stdin.buffer.read()
    instance = instance_lock.acquire(data_dir)
    if instance is not None:
        instance.note(instance_lock.STOPPING)
        embedded_postgres.stop(data_dir)


if __name__ == "__main__":
    main()
