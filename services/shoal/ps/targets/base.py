"""The interface of a target: files of jobs, each there whole or not at all."""

import abc
from collections.abc import Collection, Iterable
from typing import BinaryIO


class SnapshotTarget(abc.ABC):
    """`job_id` and `name` are plain names: `snapshot.py` checks them before it asks a target.

    Methods raise OSError as the system or fsspec does (FileNotFoundError for a file that is not there), and
    Unavailable when a target on the network cannot be reached. Thread-safe.
    """

    @abc.abstractmethod
    def write(self, job_id: str, name: str, pieces: Iterable[bytes | memoryview]) -> None:
        """Returns when the file is durable. A file of that name is replaced; of a failed write nothing stays."""

    @abc.abstractmethod
    def open(self, job_id: str, name: str) -> BinaryIO:
        """For reading, seekable."""

    @abc.abstractmethod
    def jobs(self) -> tuple[str, ...]:
        """Those that may have files here."""

    @abc.abstractmethod
    def names(self, job_id: str) -> tuple[str, ...]:
        """The job's whole files; none for a job that is not known here."""

    @abc.abstractmethod
    def delete(self, job_id: str, names: Collection[str]) -> None:
        """Those that are not there are gone already."""

    @abc.abstractmethod
    def delete_job(self, job_id: str) -> None:
        """All of a job's files, if there are any."""

    @abc.abstractmethod
    def clean(self) -> int:
        """Removes what writers that died have left half-written; returns how many files that were."""

    @abc.abstractmethod
    def __str__(self) -> str:
        """For people: the folder or URL."""
