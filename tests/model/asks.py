"""What the machine draws: graphs, and what a worker wants to record of a claim."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from model.execution import Execution, Key
from model.world import unique_name
from spanloom.engine.store.requests import Outcome, RecordRequest
from spanloom.engine.store.states import WaitKind
from spanloom.engine.workflow.definitions import Input, Node, On, Workflow

PICK = st.integers(0, 999)  # one of those that there are, by its number modulo how many
PLAIN = [Outcome.COMPLETED, Outcome.FAILED, Outcome.SKIPPED, Outcome.RETRY, Outcome.RELEASED]


@dataclass(frozen=True)
class Held:
    """A claim as its worker knows it."""

    execution_id: str
    key: Key
    fence: int
    worker_id: str


@dataclass(frozen=True)
class Wish:
    """What to record of a claim, before it is known of which."""

    claim: int
    stale: bool
    what: Outcome | WaitKind
    taken: int | None  # a bit per successor; None leaves it to the edges
    handled: bool
    next: bool
    most: int
    delay: float
    items: int
    bound: int

    def record(self, execution: Execution, held: Held, fields: Mapping[str, Any]) -> RecordRequest:
        """Return the record of this claim; `fields` are those of its kind of wait."""
        node, item = held.key
        successors = execution.successors(node)
        taken = None if self.taken is None else tuple(s for at, s in enumerate(successors) if self.taken >> at & 1)
        waits = isinstance(self.what, WaitKind)
        wished = (*(() if item else successors), *((node,) if item or waits else ())) if self.next else ()
        ends = self.what in (Outcome.COMPLETED, Outcome.FAILED)
        record = RecordRequest(
            *(held.execution_id, node, item, held.fence, held.worker_id),
            outcome=Outcome.WAITING if isinstance(self.what, WaitKind) else self.what,
            data=json.dumps([node, item, held.fence]) if ends and (self.handled or self.what != "failed") else None,
            error=json.dumps({"type": "Boom", "message": node}) if self.what in ("failed", "retry") else None,
            taken=taken if ends and not item else None,
            handled=self.handled and self.what == "failed" and not item,
            delay_seconds=self.delay,
            wait_kind=self.what if isinstance(self.what, WaitKind) else None,
            wait_key=f"key {held.fence}" if waits else None,
            spends_attempt=not self.handled,
            successors=wished,
            most_following=self.most,
        )
        return record._replace(**fields)


def wishes(*whats: Outcome | WaitKind) -> st.SearchStrategy[Wish]:
    """Draw what to record, one of these."""
    return st.builds(
        Wish,
        claim=PICK,
        stale=st.integers(0, 5).map(lambda number: number == 5),
        what=st.sampled_from(whats),
        taken=st.none() | st.integers(0, 15),
        handled=st.booleans(),
        next=st.booleans(),
        most=st.sampled_from([1, 1, 2, 9]),
        delay=st.sampled_from([0.0, 1.5, 8.0]),
        items=st.integers(1, 4),
        bound=st.integers(1, 3),
    )


_KINDS: list[On] = ["success", "success", "failure", "always"]
Graph = dict[str, tuple[str, dict[str, On]]]  # per node its queue, and its parents with what each edge is taken on


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Draw up to six nodes, each after any of those before it, on two queues."""
    drawn: Graph = {}
    for number in range(draw(st.sampled_from([4, 6, 5, 3, 2, 1]))):
        most = draw(
            st.sampled_from([1, 1, 3])
        )  # so that about half of the nodes are entries, and much runs side by side
        parents = draw(st.lists(st.sampled_from(list(drawn)), unique=True, max_size=most)) if drawn else []
        kinds = st.sampled_from(_KINDS)
        queue = draw(st.sampled_from(["default", "default", "other"]))
        drawn[f"n{number}"] = (queue, {parent: draw(kinds) for parent in parents})
    return drawn


def workflow_of(graph: Graph) -> Workflow:
    """Return the workflow of a drawn graph, under an id of its own."""
    name = unique_name()
    nodes = [
        Node(
            id=node, type="work", queue=queue, inputs=tuple(Input(node=parent, on=on) for parent, on in parents.items())
        )
        for node, (queue, parents) in graph.items()
    ]
    return Workflow(id=name, name=name, nodes=tuple(nodes))
