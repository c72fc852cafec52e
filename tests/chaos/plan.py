"""Which fault happens to whom, and when: a function of the seed."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

WORKERS = ("worker-1", "worker-2", "worker-3")
SERVERS = ("ps-1", "ps-2")
APART = ("worker-2", "worker-3", "ps-2")  # whose network can be cut


class Kind(StrEnum):
    """`freeze` is SIGSTOP for longer than a lease, then SIGCONT; `kill` is SIGKILL."""

    KILL_LEADER = "kill the master that leads, while a job is submitted"
    FREEZE_LEADER = "freeze the master that leads"
    KILL_STANDBY = "kill the master that stands by"
    KILL_AGENT = "kill the agent"
    FREEZE_AGENT = "freeze the agent"
    KILL_WORKER = "kill the agent and its trainers"
    FREEZE_WORKER = "freeze the agent and its trainers"
    KILL_TRAINER = "kill a trainer"
    FREEZE_TRAINER = "freeze a trainer"
    KILL_SERVER = "kill the parameter server"
    FREEZE_SERVER = "freeze the parameter server"
    KILL_STORE = "kill PostgreSQL"
    FREEZE_STORE = "freeze PostgreSQL"
    CUT = "cut every connection"
    STALL = "stall every connection"
    DELAY = "delay every connection"
    PART = "drop all packets"
    PART_IN = "drop all packets that come in"
    PART_OUT = "drop all packets that go out"


OF_NETWORK = (Kind.PART, Kind.PART_IN, Kind.PART_OUT)


@dataclass(frozen=True, kw_only=True, slots=True)
class Dealt:
    """How often a kind is in a deck, to whom it happens, how long it lasts, and the least time to the next fault."""

    count: int
    targets: tuple[str, ...]
    for_seconds: tuple[float, float] = (0.0, 0.0)
    pause_seconds: float = 1.0


_BEYOND_LEASE = (3.5, 5.0)  # leases are 2.5 s of members, 3 s of masters
DECK = {
    Kind.KILL_LEADER: Dealt(count=6, targets=("master",), pause_seconds=2.5),
    Kind.FREEZE_LEADER: Dealt(count=3, targets=("master",), for_seconds=(4.0, 5.5), pause_seconds=3.0),
    Kind.KILL_STANDBY: Dealt(count=2, targets=("master",)),
    Kind.KILL_AGENT: Dealt(count=4, targets=WORKERS, pause_seconds=2.5),
    Kind.FREEZE_AGENT: Dealt(count=3, targets=WORKERS, for_seconds=_BEYOND_LEASE, pause_seconds=2.0),
    Kind.KILL_WORKER: Dealt(count=4, targets=WORKERS, pause_seconds=2.5),
    Kind.FREEZE_WORKER: Dealt(count=3, targets=WORKERS, for_seconds=_BEYOND_LEASE, pause_seconds=2.0),
    Kind.KILL_TRAINER: Dealt(count=6, targets=WORKERS, pause_seconds=1.5),
    Kind.FREEZE_TRAINER: Dealt(count=4, targets=WORKERS, for_seconds=_BEYOND_LEASE),
    Kind.KILL_SERVER: Dealt(count=4, targets=SERVERS, pause_seconds=5.0),
    Kind.FREEZE_SERVER: Dealt(count=3, targets=SERVERS, for_seconds=_BEYOND_LEASE, pause_seconds=3.0),
    Kind.KILL_STORE: Dealt(count=4, targets=("PostgreSQL",)),
    Kind.FREEZE_STORE: Dealt(count=3, targets=("PostgreSQL",), for_seconds=_BEYOND_LEASE, pause_seconds=2.0),
    Kind.CUT: Dealt(count=6, targets=("to master", "to ps-1")),
    Kind.STALL: Dealt(count=4, targets=("to master", "to ps-1"), for_seconds=(1.0, 4.0), pause_seconds=1.5),
    Kind.DELAY: Dealt(count=4, targets=("to master", "to ps-1"), for_seconds=(2.0, 4.0)),
    Kind.PART: Dealt(count=3, targets=APART, for_seconds=_BEYOND_LEASE, pause_seconds=2.0),
    Kind.PART_IN: Dealt(count=3, targets=APART, for_seconds=_BEYOND_LEASE, pause_seconds=2.0),
    Kind.PART_OUT: Dealt(count=3, targets=APART, for_seconds=_BEYOND_LEASE, pause_seconds=2.0),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """`after_seconds` counts from the fault before; `for_seconds` 0 is for good, or an instant."""

    kind: Kind
    target: str
    after_seconds: float
    for_seconds: float

    def __str__(self) -> str:
        duration = f" for {self.for_seconds:.1f} s" if self.for_seconds else ""
        return f"{self.target}: {self.kind}{duration}"


def faults(seed: int, *, network: bool) -> Iterator[Fault]:
    """One shuffled deck after the other, without end. Targets take turns, so that each gets its share of each kind."""
    chance = random.Random(seed)
    turns = {kind: chance.randrange(len(dealt.targets)) for kind, dealt in DECK.items()}
    while True:
        deck = [kind for kind, dealt in DECK.items() for _ in range(dealt.count) if network or kind not in OF_NETWORK]
        chance.shuffle(deck)
        for kind in deck:
            dealt = DECK[kind]
            turns[kind] += 1
            yield Fault(
                kind=kind,
                target=dealt.targets[turns[kind] % len(dealt.targets)],
                after_seconds=round(dealt.pause_seconds * chance.uniform(0.5, 1.5), 2),
                for_seconds=round(chance.uniform(*dealt.for_seconds), 2),
            )


def size_of_deck(*, network: bool) -> int:
    return sum(dealt.count for kind, dealt in DECK.items() if network or kind not in OF_NETWORK)
