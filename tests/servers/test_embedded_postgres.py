"""The embedded PostgreSQL starts after any end of the previous run, once for all callers, and only for its owner."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from nexmdm.standalone import embedded_postgres


@pytest.fixture
def data_dir() -> Iterator[Path]:
    # Not tmp_path: its name may be too long for a socket.
    with tempfile.TemporaryDirectory(prefix="nexmdm-") as folder:
        yield Path(folder) / "data"
        embedded_postgres.stop(Path(folder) / "data")


@pytest.fixture
def bystander(data_dir: Path) -> Iterator[int]:
    """Another program of the account that PostgreSQL runs as."""
    embedded_postgres.start(data_dir)
    embedded_postgres.stop(data_dir)
    owner = (data_dir / "pg").stat().st_uid
    with subprocess.Popen(["sleep", "60"], user=owner if os.geteuid() == 0 else None) as sleeper:  # noqa: S607
        yield sleeper.pid
        sleeper.kill()


def connect(data_dir: Path) -> psycopg.Connection:
    return psycopg.connect(embedded_postgres.url(data_dir), autocommit=True)


def server_pid(data_dir: Path) -> int:
    return int((data_dir / "pg/cluster/postmaster.pid").read_text().split()[0])


def test_naming_the_database_starts_nothing(data_dir: Path) -> None:
    assert embedded_postgres.database(data_dir)["HOST"] == str(data_dir / "pg")
    assert not data_dir.exists()


def test_only_the_call_that_started_postgresql_returns_true(data_dir: Path) -> None:
    assert [embedded_postgres.start(data_dir), embedded_postgres.start(data_dir)] == [True, False]
    assert [embedded_postgres.stop(data_dir), embedded_postgres.stop(data_dir)] == [True, False]


def test_only_the_owner_can_connect_and_only_by_the_socket(data_dir: Path) -> None:
    embedded_postgres.start(data_dir)
    with connect(data_dir) as connection:
        assert connection.execute("SHOW listen_addresses").fetchone() == ("",)
    assert (data_dir / "pg").stat().st_mode & 0o777 == 0o700


def test_the_embedded_postgresql_is_utf8_in_every_locale_and_durable(data_dir: Path) -> None:
    embedded_postgres.start(data_dir)
    names = ("server_encoding", "fsync", "synchronous_commit", "full_page_writes", "jit")
    with connect(data_dir) as connection:
        values = [connection.execute("SELECT current_setting(%s)", [name]).fetchone() for name in names]
    assert values == [("UTF8",), ("on",), ("on",), ("on",), ("off",)]


def test_committed_data_survives_a_kill(data_dir: Path) -> None:
    embedded_postgres.start(data_dir)
    with connect(data_dir) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS n")
    os.kill(server_pid(data_dir), signal.SIGKILL)
    assert embedded_postgres.start(data_dir)
    with connect(data_dir) as connection:
        assert connection.execute("SELECT n FROM kept").fetchone() == (7,)


def test_lock_files_with_a_reused_pid_do_not_prevent_a_start(data_dir: Path, bystander: int) -> None:
    for path in (data_dir / "pg/cluster/postmaster.pid", data_dir / "pg/.s.PGSQL.5432.lock"):
        path.write_text(f"{bystander}\n")
        os.chown(path, (data_dir / "pg").stat().st_uid, -1)
    assert embedded_postgres.start(data_dir)
    os.kill(bystander, 0)  # still there


def test_a_stop_with_a_stale_pid_file_signals_no_process(data_dir: Path, bystander: int) -> None:
    (data_dir / "pg/cluster/postmaster.pid").write_text(f"{bystander}\n")
    assert not embedded_postgres.stop(data_dir)
    os.kill(bystander, 0)


def test_an_interrupted_creation_is_started_again(data_dir: Path) -> None:
    (data_dir / "pg" / "cluster.new").mkdir(parents=True)
    (data_dir / "pg" / "cluster.new" / "PG_VERSION").write_text("18\n")
    assert embedded_postgres.start(data_dir)


def test_processes_that_start_postgresql_at_the_same_time_agree(data_dir: Path) -> None:
    start = "from nexmdm.standalone import embedded_postgres; print(embedded_postgres.start(Path(sys.argv[1])))"
    code = f"import sys; from pathlib import Path; {start}"
    argv = [sys.executable, "-c", code, str(data_dir)]
    starters = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [starter.communicate(timeout=60)[0].strip() for starter in starters]
    assert sorted(answers) == ["False", "False", "True"]


def test_a_path_too_long_for_a_socket_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(embedded_postgres.EmbeddedError, match="NEXMDM_DATA_DIR"):
        embedded_postgres.start(tmp_path / ("x" * 100))
