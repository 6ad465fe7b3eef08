"""The database: SQLite for one process, PostgreSQL for several."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, create_engine, event, insert, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DataError, IntegrityError, SQLAlchemyError

from .errors import SettingsError, StorageError
from .records import SCHEMA_VERSION, about, metadata, new_id

_CREATING = 7302  # number of one of PostgreSQL's advisory locks


class Database:
    """Connections and transactions.

    Args:
        url: as SQLAlchemy has it.
    """

    def __init__(self, url: str) -> None:
        try:
            parsed = make_url(url)
        except (ArgumentError, ValueError) as error:
            raise SettingsError("database: not an address such as postgresql://user@host/name") from error
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        if self.is_sqlite:
            # Another connection writes for milliseconds; whoever waits longer is told that the database is gone.
            self._engine = create_engine(parsed, connect_args={"timeout": 5.0})
            event.listen(self._engine, "connect", _on_connect)
            event.listen(self._engine, "begin", _on_begin)
        elif parsed.get_backend_name() == "postgresql":
            limits = "-c lock_timeout=5000 -c statement_timeout=20000 -c idle_in_transaction_session_timeout=20000"
            self._engine = create_engine(
                parsed.set(drivername="postgresql+psycopg"),
                pool_pre_ping=True,
                pool_size=8,
                connect_args={"connect_timeout": 5, "options": limits},
            )
        else:
            raise SettingsError(f"database: {parsed.get_backend_name()} is neither sqlite nor postgresql")

    def create(self) -> None:
        """Make the tables where there are none.

        Raises:
            SettingsError: they were made by another release.
        """
        with self.writing(_CREATING) as connection:
            metadata.create_all(connection)
            version = connection.scalar(select(about.c.version))
            if version is None:
                connection.execute(insert(about).values(version=SCHEMA_VERSION, name=new_id("database")))
            elif version != SCHEMA_VERSION:
                found = f"its tables are of version {version}, this release has {SCHEMA_VERSION}"
                raise SettingsError(f"database: {found}; start with an empty one")

    def close(self) -> None:
        self._engine.dispose()

    def name(self) -> str:
        """Return what tells this database from every other one."""
        with self.reading() as connection:
            return str(connection.scalar(select(about.c.name)))

    def now(self) -> float:
        """Return the time: on PostgreSQL the server's, which all replicas share."""
        if self.is_sqlite:
            return time.time()
        with self.reading() as connection:
            return float(connection.scalar(text("SELECT extract(epoch FROM clock_timestamp())")) or 0.0)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Around a transaction that reads.

        Raises:
            StorageError: the database does not answer.
        """
        with _translated(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self, lock: int | None = None) -> Iterator[Connection]:
        """Around a transaction that writes; on PostgreSQL, with a lock that the others of its kind wait for.

        Raises:
            StorageError: the database does not answer.
        """
        with _translated(), self._engine.connect() as plain:
            connection = plain.execution_options(writes=True)
            with connection.begin():
                if lock is not None and not self.is_sqlite:
                    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": lock})
                yield connection


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (IntegrityError, DataError):
        raise  # a mistake of ours, which time does not mend
    except SQLAlchemyError as error:
        # Without the statement and its parameters, which hold what clients wrote.
        cause = " ".join(str(getattr(error, "orig", None) or error).split())[:200]
        raise StorageError(f"the database does not answer: {cause}") from error


def _on_connect(connection: Any, _record: Any) -> None:
    # SQLAlchemy's own `begin` below decides when a transaction starts.
    connection.isolation_level = None
    connection.execute("PRAGMA journal_mode=WAL")
    # A commit is on the disk when it returns: a job that was taken survives a loss of power.
    connection.execute("PRAGMA synchronous=FULL")


def _on_begin(connection: Connection) -> None:
    # A transaction that reads first and writes then would fail where another one writes in between.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
