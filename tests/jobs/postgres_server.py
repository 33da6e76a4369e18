"""A real PostgreSQL server for the tests, from the distribution's packages: own folder, own port, thrown away after."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from tests.jobs.job_doubles import memory

MISSING = "PostgreSQL's server programs are needed for these tests: apt-get install postgresql"


def programs() -> Path:
    """The folder of initdb and pg_ctl; AssertionError with what to install when there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    assert on_path is not None, MISSING
    return Path(on_path).parent


@contextmanager
def server() -> Iterator[str]:
    """Start a server on a free local port; yields the URL of its one database."""
    bin_folder = programs()
    user = "postgres" if os.geteuid() == 0 else None  # the server refuses to run as root
    folder = Path(tempfile.mkdtemp(prefix="i2v-pg-", dir=memory()))
    if user is not None:
        account = pwd.getpwnam(user)
        os.chown(folder, account.pw_uid, account.pw_gid)

    def run(*command: str) -> None:
        subprocess.run(
            [str(bin_folder / command[0]), *command[1:]],
            check=True,
            user=user,
            group=user,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(folder), "LC_ALL": "C"},
        )

    port = _free_port()
    data = str(folder / "data")
    options = f"-h 127.0.0.1 -p {port} -k {folder} -F -c shared_buffers=16MB -c max_connections=60"
    try:
        run("initdb", "-D", data, "-U", "i2v", "-A", "trust", "-E", "UTF8", "--no-sync")
        run("pg_ctl", "-D", data, "-o", options, "-l", str(folder / "log"), "-w", "start")
        try:
            yield f"postgresql://i2v@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def empty(url: str) -> None:
    """Forget all tables: a new database for each test would cost a second each."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
