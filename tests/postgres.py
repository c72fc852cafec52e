"""A real PostgreSQL server for tests, from the binaries on this machine, and a database of its own for each test.

The server is the test process' own: it starts on a free loopback port when a test first asks for it, keeps its files
in a temporary folder, syncs every commit, wants a password, and ends with the test process. Tests may freeze, kill and
restart it.
"""

import asyncio
import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest

from shoal.master.store.base import Limits
from shoal.master.store.opening import open_database
from tests.ports import free_port

USER = "shoal"
PASSWORD = "p@ss/wo:rd%"  # every character that a URL must escape
_SECONDS = 60.0  # for a server to start or stop, on a busy machine
_TEMPLATE = "template_of_tests"


def find_binaries() -> Path:
    """The folder with `initdb`. Skips the test, saying why, where there is none."""
    folders = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: _number(folder.parent.name), reverse=True
    )
    if (found := shutil.which("initdb")) is not None:
        folders.append(Path(found).resolve().parent)
    for folder in folders:
        if all((folder / program).exists() for program in ("initdb", "postgres", "psql")):
            return folder
    pytest.skip("NOT TESTED with PostgreSQL: no server here (Debian: apt-get install postgresql)")


def _number(version: str) -> float:
    try:
        return float(version)
    except ValueError:
        return 0.0


class PostgresServer:
    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self._user = _unprivileged_user()
        self.folder = Path(tempfile.mkdtemp(prefix="shoal-postgres-"))  # not pytest's: others may not look into that
        if self._user is not None:
            os.chown(self.folder, self._user.pw_uid, self._user.pw_gid)
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._template = ""
        password_file = self.folder / "password"
        password_file.write_text(PASSWORD)
        if self._user is not None:
            os.chown(password_file, self._user.pw_uid, self._user.pw_gid)
        self._run("initdb", "--no-sync", "--username", USER, "--auth", "scram-sha-256", "--encoding", "UTF8",
                  "--locale", "C", "--pwfile", str(password_file), "--pgdata", str(self.folder / "data"))  # fmt: skip
        password_file.unlink()

    def start(self) -> None:
        """Returns when it answers."""
        self.launch()
        assert self._process is not None
        deadline = time.monotonic() + _SECONDS
        while subprocess.run([self._binaries / "pg_isready", *self._where()], capture_output=True).returncode != 0:
            code = self._process.poll()
            assert code is None, f"it ended with code {code}: {(self.folder / 'log.txt').read_text()}"
            assert time.monotonic() < deadline, "PostgreSQL does not start"
            time.sleep(0.02)

    def launch(self) -> None:
        """Starts it; it answers soon, unless it has much to recover from."""
        command: list[str | Path] = [
            *self._as_user("--pdeathsig", "QUIT"),  # no preexec_fn: gRPC's fork handlers break a child at times
            self._binaries / "postgres", "-D", self.folder / "data",
            "-h", "127.0.0.1", "-p", str(self.port), "-k", self.folder,
            "-c", "fsync=on", "-c", "max_connections=60", "-c", "shared_buffers=16MB",
        ]  # fmt: skip
        with (self.folder / "log.txt").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/")

    def stop(self, number: int = signal.SIGINT) -> None:
        """SIGINT: a fast shutdown. SIGQUIT: as after a power cut."""
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(timeout=_SECONDS)
        self._process = None

    def kill(self) -> None:
        """SIGKILL to every process of the server, as when its machine fails."""
        assert self._process is not None
        family = [psutil.Process(pid) for pid in _children(self._process.pid) if psutil.pid_exists(pid)]
        self._process.kill()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait(timeout=_SECONDS)
        self._process = None
        assert not psutil.wait_procs(family, timeout=_SECONDS)[1]

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Every process of the server stands still for the length of the block."""
        assert self._process is not None
        family = [self._process.pid, *_children(self._process.pid)]
        for pid in family:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in family:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def close(self) -> None:
        if self._process is not None:
            self.stop()
        shutil.rmtree(self.folder)

    def url(self, database: str, *, user: str = USER, password: str = PASSWORD, port: int | None = None) -> str:
        return f"postgresql://{user}:{quote(password, safe='')}@127.0.0.1:{port or self.port}/{database}"

    def sql(self, statement: str, *, database: str = "postgres") -> str:
        """The answer's rows, columns separated by |."""
        done = subprocess.run(
            [self._binaries / "psql", *self._where(), "-d", database, "-v", "ON_ERROR_STOP=1", "-qXAtc", statement],
            env={**os.environ, "PGPASSWORD": PASSWORD},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    @contextlib.contextmanager
    def database(self, *, empty: bool = False) -> Iterator[str]:
        """The URL of a new database with Shoal's tables: a copy of one that was migrated once."""
        if not empty and not self._template:
            self.sql(f"CREATE DATABASE {_TEMPLATE}")
            with ThreadPoolExecutor(1) as pool:  # the caller's own thread may have an event loop that runs
                pool.submit(lambda: asyncio.run(_migrate(self.url(_TEMPLATE)))).result()
            self._template = f"TEMPLATE {_TEMPLATE}"
        name = f"test_{secrets.token_hex(6)}"
        self.sql(f"CREATE DATABASE {name} {'' if empty else self._template}")
        try:
            yield self.url(name)
        finally:
            if self._process is not None:  # it may have been stopped by a test that failed
                self.sql(f"DROP DATABASE {name} WITH (FORCE)")

    def _where(self) -> list[str]:
        return ["-h", "127.0.0.1", "-p", str(self.port), "-U", USER]

    def _run(self, program: str, *arguments: str) -> None:
        command: list[str | Path] = [*self._as_user(), self._binaries / program, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd="/")
        assert done.returncode == 0, done.stdout + done.stderr

    def _as_user(self, *options: str) -> list[str]:
        """In front of a command; `options` are setpriv's."""
        if self._user is not None:
            options = (f"--reuid={self._user.pw_uid}", f"--regid={self._user.pw_gid}", "--clear-groups", *options)
        return ["setpriv", *options] if options else []


def _unprivileged_user() -> pwd.struct_passwd | None:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    pytest.skip("NOT TESTED with PostgreSQL: it refuses to run as root, and there is no user 'nobody'")


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def _migrate(url: str) -> None:
    database = await open_database(
        url, limits=Limits(log_lines=1, events=1), connections=1, timeout_seconds=30, lease_seconds=60
    )
    await database.close()


@contextlib.contextmanager
def running_server() -> Iterator[PostgresServer]:
    server = PostgresServer(find_binaries())
    try:
        server.start()
        yield server
    finally:
        server.close()
