"""Which master a command means, and a client of it that says what it waits for."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import typer

from shoal.cli import output as out
from shoal.sdk import Client
from shoal.sdk.client import DEFAULT_ADDRESS
from shoal.sdk.contexts import Context, ContextFile

MASTER_VARIABLE = "SHOAL_MASTER_ADDRESS"
LOCAL_CONTEXT = "local"  # that of `shoal up`


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a master should be. `advice` is for the case that it is not there."""

    address: str
    advice: str

    @classmethod
    def of_context(cls, context: Context) -> "Place":
        needed = f", which needs '{context.command}' to run" if context.command else ""
        advice = f"this is context '{context.name}'{needed}; or choose another one by 'shoal contexts use'"
        return cls(address=context.address, advice=advice)


def place_of(root: typer.Context, *, master: str, context: str) -> Place:
    """--master, --context, $SHOAL_MASTER_ADDRESS, the current context, `shoal up`, the default.

    Raises NotFound for a context that does not exist, Corrupt for a damaged file of contexts.
    """
    before: dict[str, Any] = root.obj or {}  # options before the command's name
    if given := master or str(before.get("master", "")):
        return Place(address=given, advice="is a master, or a forward to one, running at this address of --master?")
    contexts = ContextFile()
    if name := context or str(before.get("context", "")):
        return Place.of_context(contexts.read().get(name))
    if given := os.environ.get(MASTER_VARIABLE, ""):
        return Place(
            address=given,
            advice=f"it is the address of ${MASTER_VARIABLE}; start a master there with 'shoal up', or change it",
        )
    if current := contexts.read().current:
        return Place.of_context(current)
    from shoal.local import detached

    cluster = detached.find()
    if cluster is not None and cluster.running:
        return Place(address=cluster.address, advice="the cluster of 'shoal up' does not answer; see 'shoal status'")
    return Place(
        address=DEFAULT_ADDRESS,
        advice="start one with 'shoal up', connect to one in Kubernetes with 'shoal connect', or give its address",
    )


@contextmanager
def reached(root: typer.Context, *, master: str, context: str) -> Iterator[Client]:
    """A client of the master that is meant. Raises Unavailable soon if nobody listens there at the start."""
    place = place_of(root, master=master, context=context)
    with Client(place.address, advice=place.advice, listener=_Told(place.address)) as client:
        client.reach()
        yield client


class _Told:
    """Tells on stderr why nothing happens."""

    def __init__(self, address: str) -> None:
        self._address = address

    def waiting(self, reason: str, seconds: float) -> None:
        out.say(f"waiting for up to {seconds:.0f} s: {reason}")

    def answers(self) -> None:
        out.say(f"the master at {self._address} answers again")
