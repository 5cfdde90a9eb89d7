"""The process that stops the embedded PostgreSQL after `serve` was killed.

`serve` starts `python -m nexmdm.standalone.postgres_watchdog <data folder>`, with a pipe as its standard input. `serve`
and its children have the write end of this pipe. So the standard input ends after all of them have ended.
"""

import sys
from pathlib import Path

from nexmdm.standalone import embedded_postgres, instance_lock


def main() -> None:
    """Wait until `serve` and its children have ended, then stop PostgreSQL.

    Do nothing if a new `serve` already uses the data folder.
    """
    data_dir = Path(sys.argv[1])
    sys.stdin.buffer.read()
    instance = instance_lock.acquire(data_dir)
    if instance is not None:
        instance.note(instance_lock.STOPPING)
        embedded_postgres.stop(data_dir)


if __name__ == "__main__":
    main()
