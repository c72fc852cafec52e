"""What each worker is to do: level-triggered lists with a revision, and the long polls that wait for them."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from shoal.core.job import Grant


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignments:
    """Everything a worker is to run now. A job that is missing is to be dropped."""

    revision: int
    grants: tuple[Grant, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class GrantChanges:
    """Which workers must be told, after one change of a job's grants."""

    granted: Mapping[str, Grant]
    withdrawn: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class _Entry:
    revision: int
    grants: dict[str, Grant] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class GrantBook:
    """The only owner of grants. Revisions grow over restarts when `first_revision` does (Unix milliseconds)."""

    def __init__(self, *, first_revision: int) -> None:
        self._revision = first_revision
        self._entries: dict[str, _Entry] = {}

    def of(self, worker_id: str) -> Assignments:
        entry = self._entry(worker_id)
        grants = tuple(replace(grant, revision=entry.revision) for grant in entry.grants.values())
        return Assignments(revision=entry.revision, grants=grants)

    def jobs_of(self, worker_id: str) -> tuple[str, ...]:
        entry = self._entries.get(worker_id)
        return tuple(sorted(entry.grants)) if entry else ()

    def holds(self, worker_id: str, job_id: str) -> bool:
        return job_id in self.jobs_of(worker_id)

    def set_job(self, job_id: str, grants: Mapping[str, Grant]) -> GrantChanges:
        """Makes these, by worker, the job's only grants."""
        granted: dict[str, Grant] = {}
        withdrawn: list[str] = []
        for worker_id, entry in self._entries.items():
            if job_id in entry.grants and worker_id not in grants:
                del entry.grants[job_id]
                self._bump(entry)
                withdrawn.append(worker_id)
        for worker_id, grant in grants.items():
            entry = self._entry(worker_id)
            if entry.grants.get(job_id) != grant:
                entry.grants[job_id] = grant
                self._bump(entry)
                granted[worker_id] = replace(grant, revision=entry.revision)
        return GrantChanges(granted=granted, withdrawn=tuple(withdrawn))

    def rise_above(self, worker_id: str, known_revision: int) -> None:
        """A worker knows a revision that this book has not given yet (the clock went back over a restart)."""
        entry = self._entry(worker_id)
        if known_revision > entry.revision:
            self._revision = max(self._revision, known_revision)
            self._bump(entry)

    def forget(self, worker_id: str) -> None:
        """Of a worker that is lost for good; one without grants starts with a new revision when it comes back."""
        entry = self._entries.pop(worker_id, None)
        if entry is not None:
            entry.changed.set()

    async def wait_for_change(self, worker_id: str, known_revision: int, *, seconds: float) -> Assignments:
        """Returns as soon as the revision is another, or after `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                while self._entry(worker_id).revision == known_revision:
                    await self._entry(worker_id).changed.wait()
        except TimeoutError:
            pass
        return self.of(worker_id)

    def _entry(self, worker_id: str) -> _Entry:
        if worker_id not in self._entries:
            self._revision += 1
            self._entries[worker_id] = _Entry(revision=self._revision)
        return self._entries[worker_id]

    def _bump(self, entry: _Entry) -> None:
        self._revision += 1
        entry.revision = self._revision
        entry.changed.set()
        entry.changed = asyncio.Event()
