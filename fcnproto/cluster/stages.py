"""The stages that a chunk passes, each a stage of Ray Data's, which shows them by these names.

listing -> reading -> decoding -> Net -> encoding -> writing. Rows are whole chunks, so that no stage need gather
anything. Only the net's stage imports torch: processes that decode start the sooner.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from fcnproto.cluster import sources
from fcnproto.cluster.chunks import Chunk, Failure, from_row, reasons
from fcnproto.cluster.guard import Guard, attempt
from fcnproto.cluster.sinks import Sink
from fcnproto.cluster.work import Work

Rows = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What every stage needs to know.

    Attributes:
        work: what is done with the items.
        sink: where the results go; None for those that are only told to the driver.
        resume: look into the sink for what is done.
        part: most items in a chunk of small ones.
        column: the column of Parquet files that holds images.
        ledger: the handle of the `guard.Ledger`.
        item_timeout: seconds.
        room: bytes of pixels that a chunk holds at most between decoding and the net; further images stay encoded until
            then.
    """

    work: Work
    sink: Sink | None
    resume: bool
    part: int
    column: str | None
    ledger: Any
    item_timeout: float | None
    room: int

    def guard(self, stage: str) -> Guard:
        """The guard of a stage."""
        return Guard(self.ledger, self.item_timeout, stage)


def listing(row: Rows, plan: Plan) -> Iterator[Rows]:
    """The chunks of a shard; a chunk stays as it is."""
    if row["chunk"] is not None:
        yield row
        return
    for chunk in sources.listing(pickle.loads(row["shard"]), plan.work.step, plan.part, plan.column):
        yield {**chunk.row(), "shard": None}


def reading(row: Rows, plan: Plan) -> Rows:
    """Read the items that are not done yet, with those that are run in one group with them."""
    chunk = from_row(row)
    if plan.resume and plan.sink is not None:
        chunk.done = plan.sink.done(chunk)
    if chunk.values:  # a shard that can't be read
        return chunk.row()
    step, places = plan.work.step, range(len(chunk.items))
    open_steps = {place // step for place in places if place not in chunk.done}
    wanted = [place for place in places if place // step in open_steps]
    with plan.work.reading() as read:
        found = plan.guard("reading").each(
            chunk.key, {place: chunk.items[place].name for place in wanted}, lambda place: read(chunk.items[place])
        )
    chunk.values = [found.get(place) for place in places]
    chunk.items = [item._replace(data=None) for item in chunk.items]
    parts = [part for value in found.values() for part in (value if type(value) is tuple else (value,))]
    chunk.bytes_read = sum(len(part) for part in parts if isinstance(part, bytes))
    return chunk.row()


def decoding(row: Rows, plan: Plan) -> Rows:
    """Decode what was read, as far as there is room for the pixels."""
    chunk, room = from_row(row), plan.room

    def decode(place: int) -> Any:
        nonlocal room
        value = plan.work.decode(chunk.items[place], chunk.values[place], room)
        room -= getattr(value, "nbytes", 0)
        return value

    names = {place: chunk.items[place].name for place in chunk.open_places()}
    for place, value in plan.guard("decoding").each(chunk.key, names, decode).items():
        chunk.values[place] = value
    return chunk.row()


class Net:
    """The net, in an actor: what computes."""

    def __init__(self, plan: Plan, parcel: list[Any], setup: Any) -> None:
        import ray

        from fcnproto.cluster.sending import unpack

        setup()
        self.plan = plan
        self.net = plan.work.on_worker(unpack(ray.get(parcel[0])))

    def __call__(self, row: Rows) -> Rows:
        chunk = from_row(row)
        found = self.plan.work.run(self.net, chunk, self.plan.guard("the net").together)
        chunk.values = [
            value if type(value) is Failure else found.get(place) for place, value in enumerate(chunk.values)
        ]
        return chunk.row()


def encoding(row: Rows, plan: Plan) -> Rows:
    """Make rows of results."""
    chunk = from_row(row)
    for place in chunk.open_places():
        if place in chunk.done:
            chunk.values[place] = None
        else:
            chunk.values[place] = attempt(partial(plan.work.encode, chunk.items[place], chunk.values[place]))
    return chunk.row()


def writing(row: Rows, plan: Plan) -> Rows:
    """Write the rows, and say what was done."""
    return written(from_row(row), plan)


def written(chunk: Chunk, plan: Plan) -> Rows:
    """Write a chunk's rows to the sink; counts, failures and what the driver is told."""
    chunk.values = [None if place in chunk.done else value for place, value in enumerate(chunk.values)]
    rows = {place: chunk.values[place] for place in chunk.open_places()}
    size = 0 if plan.sink is None else plan.sink.write(chunk, rows)
    told: dict[int, Any] = {place: plan.work.told(found) for place, found in rows.items()}
    if plan.sink is not None and plan.work.tells_kept and chunk.done:
        kept = plan.sink.kept(chunk)
        told |= {place: plan.work.told(found) for place, found in kept.items()}
    return {
        "key": chunk.key,
        "done": len(rows),
        "kept": len(chunk.done),
        "bytes_read": chunk.bytes_read,
        "bytes_written": size,
        "failed": pickle.dumps(reasons([chunk])),
        "told": pickle.dumps([told[place] for place in sorted(told)]),
    }
