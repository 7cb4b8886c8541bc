"""Where a study is kept: a SQLite file that one process holds, or a PostgreSQL server for many.

Optuna keeps the queue. Beside its tables stands one of our own, of records that are written once:
its primary key has the database itself refuse a second one, whatever crashed, hung or lost its
connection before. The result of a run is such a record, and so are the recipe and the chosen
settings. (Optuna's attributes are none: the last writer wins, and a lost race passes in silence.)
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import optuna
import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError

from sagelr.errors import SagelrError, UsageError

DATABASE, LOCK = "study.db", "study.lock"
ANOTHER = (
    "Wait until it is done, stop it, or give this one another folder with --out. Several at once "
    "need --storage."
)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
LONGEST_NAME = 200
RECORDS = sa.Table(
    "sagelr_records",
    sa.MetaData(),
    sa.Column("study", sa.String(LONGEST_NAME), primary_key=True),
    sa.Column("name", sa.String(500), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)
URL = "postgresql://USER@HOST/DATABASE"
# What a URL may hold beside its password that nobody else should read.
SECRET = ("password", "sslpassword")
# A machine that hangs or is cut off while it holds the lock does so no longer than this.
LONGEST = "10min"


@contextlib.contextmanager
def locked(folder: Path, name: str = LOCK, remedy: str = ANOTHER) -> Iterator[None]:
    """Hold a folder that no other process may write into meanwhile.

    Args:
        folder: which is there.
        name: of the file that is locked.
        remedy: what to say to who comes second.

    Raises:
        SagelrError: another process holds it, or its file system has no locks.
    """
    lock = filelock.FileLock(folder / name)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise SagelrError(f"Another sagelr is at work in {folder}. {remedy}") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        (folder / name).unlink(missing_ok=True)
        raise SagelrError(
            f"{folder} is on a file system without locks ({error.strerror}). Give --out a folder "
            "on a local disk; a study may also be kept on a server, with --storage."
        ) from None
    try:
        yield
    finally:
        lock.release()


def folder_url(folder: Path) -> sa.URL:
    """The SQLite file of a study."""
    return sa.URL.create("sqlite", database=str(folder / DATABASE))


def server_url(text: str) -> sa.URL:
    """Read the URL of a PostgreSQL server.

    Raises:
        UsageError: it is none.
    """
    try:
        url = sa.make_url(text)
    except (ArgumentError, ValueError):
        raise UsageError(f"--storage is not a URL. Give one like {URL}.") from None
    if url.get_backend_name() not in ("postgresql", "postgres"):
        raise UsageError(
            f"--storage is a {url.get_backend_name()} URL; it takes PostgreSQL alone, as {URL}. "
            "Leave it out for SQLite in the folder of the study."
        )
    if not url.database:
        raise UsageError(f"--storage names no database. Give one like {URL}.")
    return url.set(drivername="postgresql")


def shown(url: sa.URL) -> str:
    """A URL without what is secret in it."""
    query = {key: value for key, value in url.query.items() if key not in SECRET}
    return url.set(query=query).render_as_string(hide_password=True)


class Storage:
    """The database of a study.

    Args:
        url: of a SQLite file or a PostgreSQL server.
        study: name of the study in a database of many; None where it has a file of its own.

    Attributes:
        place: what messages call it.
        shared: whether other processes read and write it at the same time.

    Raises:
        UsageError: the file holds something else, or the name is too long.
        SagelrError: it cannot be opened.
    """

    def __init__(self, url: sa.URL, study: str | None = None) -> None:
        if study is not None and len(study) > LONGEST_NAME:
            raise UsageError(
                f"The study's name {study[:20] + '…'!r} has {len(study)} characters. Give one of "
                f"at most {LONGEST_NAME} with --study."
            )
        self.study, self.shared = study or "", study is not None
        self.place = shown(url) if self.shared else str(url.database)
        self._records: dict[str, Any] = {}
        options: dict[str, Any] = {}
        if self.shared:
            query = {
                "application_name": "sagelr",
                "connect_timeout": "10",
                "client_encoding": "utf8",  # in that of a server's C locale texts come as bytes
                **url.query,
            }
            url = url.set(drivername="postgresql+psycopg", query=query)
            # One connection for the lock and one for what is done under it.
            options = {"pool_size": 1, "max_overflow": 1, "pool_pre_ping": True}
            options["isolation_level"] = "READ COMMITTED"  # what the claims of Optuna rely on
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            self._engine = sa.create_engine(url, **options)
        except ImportError as error:
            raise SagelrError(
                f"--storage needs psycopg ({error}). Install it: pip install 'sagelr[postgres]'"
            ) from None
        with self.explained():
            if not self.shared:
                self._check_file()
            with self.locked():
                RECORDS.metadata.create_all(self._engine)  # first: a file that has it is ours
                self._optuna = self._open_optuna(url, options)
            self._engine.dispose()
            self._engine = self._optuna.engine  # one pool: a server has few connections to give

    def _open_optuna(self, url: sa.URL, options: dict[str, Any]) -> optuna.storages.RDBStorage:
        try:
            return optuna.storages.RDBStorage(url.render_as_string(hide_password=False), options)
        except RuntimeError as error:  # its tables are of another version of Optuna
            raise SagelrError(f"{self.place}: {error}") from None

    def _check_file(self) -> None:
        tables = sa.inspect(self._engine).get_table_names()
        if tables and RECORDS.name not in tables:
            raise UsageError(
                f"{self.place} is a database of something else than sagelr (it has the table "
                f"{tables[0]}). Give --out another folder."
            )

    def optuna_study(self, stage: str) -> optuna.Study:
        """The Optuna study of a stage, made if there is none."""
        with self.explained(), self.locked():
            return optuna.create_study(
                storage=self._optuna,
                study_name=f"{self.study}/{stage}" if self.shared else stage,
                direction="minimize",
                # Every parameter is given; nothing is left to a sampler.
                sampler=optuna.samplers.RandomSampler(seed=0),
                load_if_exists=True,
            )

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from what takes several steps: making tables, filling the queue.

        The server frees the lock when the connection ends. No result depends on it: without it,
        work would be done twice.
        """
        if not self.shared:  # the whole folder is held
            yield
            return
        digest = hashlib.blake2b(f"sagelr {self.study}".encode(), digest_size=8).digest()
        with self._engine.begin() as connection:
            longest = sa.func.set_config("idle_in_transaction_session_timeout", LONGEST, True)
            connection.execute(sa.select(longest))
            number = int.from_bytes(digest, signed=True)
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(number)))
            yield

    # -- records --------------------------------------------------------------------------------

    @property
    def records(self) -> Mapping[str, Any]:
        """Name → value of every record, as of the last look."""
        return self._records

    def look(self) -> None:
        """Take in the records that others have written."""
        table = RECORDS.c
        with self.explained(), self._engine.connect() as connection:
            mine = table.study == self.study
            found = set(connection.scalars(sa.select(table.name).where(mine)))
            if new := found - self._records.keys():
                query = sa.select(table.name, table.value).where(mine)
                if self._records:
                    query = query.where(table.name.in_(new))
                for name, value in connection.execute(query):
                    self._records[name] = json.loads(value)

    def record(self, name: str, value: Any) -> bool:
        """Write a record that stands from then on.

        Returns:
            Whether it was written; False if there is one of that name, which stays as it is and is
            among `records` from now on.
        """
        text = json.dumps(value, allow_nan=False)
        row = {"study": self.study, "name": name, "value": text}
        with self.explained():
            try:
                with self._engine.begin() as connection:
                    connection.execute(sa.insert(RECORDS).values(row))
            except IntegrityError:
                self.look()
                return False
        self._records[name] = json.loads(text)
        return True

    def settle(self, name: str, value: Any) -> Any:
        """Write a record unless there is one of that name, and return what stands."""
        self.record(name, value)
        return self._records[name]

    def forget(self, names: Collection[str]) -> None:
        """Take records back, of a study in a folder, which no other process reads."""
        with self.explained(), self._engine.begin() as connection:
            for name in names:
                same = (RECORDS.c.study == self.study) & (RECORDS.c.name == name)
                connection.execute(sa.delete(RECORDS).where(same))
        for name in names:
            del self._records[name]

    def forget_queues(self) -> None:
        """Drop what was queued, of a study in a folder, which no other process reads."""
        with self.explained():
            for name in optuna.get_all_study_names(self._optuna):
                optuna.delete_study(study_name=name, storage=self._optuna)

    # -- errors ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Say what is wrong with the database, in one message.

        Raises:
            SagelrError: for whatever SQLAlchemy or Optuna raised within.
        """
        try:
            yield
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            cause = error.__cause__ or error
            reason = " ".join(str(getattr(cause, "orig", None) or cause).split())
            raise SagelrError(
                f"{self.place}: {reason}. {self._remedy(reason)} Runs that were finished are kept."
            ) from error

    def _remedy(self, reason: str) -> str:
        if not self.shared:
            return (
                "Check that the folder can be written to and its disk has room; a file that is "
                "damaged has to be moved away, or --out given another folder."
            )
        if "password" in reason:
            return (
                "Give the right password: in ~/.pgpass, in PGPASSWORD, or after the user in the "
                "URL, as USER:PASSWORD."
            )
        if "does not exist" in reason:
            return "Mend the URL, or make what is missing with createdb or createuser."
        return (
            "Check that the server runs, that this machine may reach it at that host and port, and "
            "that the user may make tables in that database."
        )
