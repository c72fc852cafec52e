"""Named points at which a test lets a process die, to prove that it may die there.

All names are listed here, so that a test can go through every one of them. `X.before_commit` lies within the
transaction, `X.before_acknowledgement` between the making of an RPC's answer and its way to the wire.
"""

import os
import signal

CRASH_AT = "SHOAL_CRASH_AT"  # environment: the name of one point, or NAME:N for the N-th time it is reached

# What the master's store commits: master/lifecycle/transitions.py, and the other writes of master/store/sql.py.
_COMMITS = (
    "take",
    "submit",
    "begin",
    "place",
    "first_step",
    "add_manifest",
    "save_evaluations",
    "append_logs",
    "add_event",
    "pause",
    "resume",
    "close_training",
    "succeed",
    "recover",
    "condemn_manifest",
    "fail",
    "cancel",
    "reopen",
    "forget_manifests",
    "prune",
)
# RPCs whose answer promises that something has changed. register_worker is asked of parameter servers by trainers, too.
_MASTER_ANSWERS = (
    "submit",
    "cancel",
    "pause",
    "resume",
    "register_worker",
    "request_job",
    "report_logs",
    "complete_job",
)
_SERVER_ANSWERS = ("create_share", "register_worker", "snapshot", "fence", "drop_share", "delete_snapshots")
_WORKER_ANSWERS = ("start_training", "stop_training", "leave")


def _around(names: tuple[str, ...], before: str, after: str) -> tuple[str, ...]:
    return tuple(f"{name}.{side}" for name in names for side in (before, after))


MASTER_POINTS = _around(_COMMITS, "before_commit", "committed") + _around(
    _MASTER_ANSWERS, "before_acknowledgement", "acknowledged"
)
SERVER_POINTS = (
    "update.before_apply",
    "update.applied",
    "update.acknowledged",
    "snapshot.opened",
    "snapshot.half_written",
    "snapshot.written",
    "snapshot.synced",
    "snapshot.renamed",
    "snapshot.folder_synced",
    *_around(_SERVER_ANSWERS, "before_acknowledgement", "acknowledged"),
)
WORKER_POINTS = _around(_WORKER_ANSWERS, "before_acknowledgement", "acknowledged")
POINTS = frozenset((*MASTER_POINTS, *SERVER_POINTS, *WORKER_POINTS))


def _wanted() -> tuple[str, int]:
    name, _, count = os.environ.get(CRASH_AT, "").partition(":")
    if name and name not in POINTS:
        raise ValueError(f"{CRASH_AT}={name}: there is no such point; process/crashing.py lists them")
    return name, int(count or 1)


_name, _left = _wanted()


def crash_point(name: str) -> None:
    """The process ends here as by a kill -9, if the environment names this point."""
    if _name and name == _name:
        _count_down()


def is_wanted(name: str) -> bool:
    """Will the process end at this point? For points that cost something to watch for."""
    return name == _name


def _count_down() -> None:
    global _left
    _left -= 1
    if _left == 0:
        os.write(2, f"crash point {_name}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)
        signal.pause()  # until the signal is delivered
