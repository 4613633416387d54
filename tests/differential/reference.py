"""What a workflow must come to, told by plain recursion over its definition: nothing runs at once, nothing waits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from spanloom.engine.workflow.definitions import Input, Node, Workflow

ENDED = ("completed", "failed", "skipped")


@dataclass
class Run:
    """One node run: as it must end, as it was seen, or as a retry of its execution finds it."""

    status: str = "absent"
    data: Any = None
    error: str | None = None  # its type
    attempt: int = 1
    calls: int = 0  # of the handler, in this round
    handled: bool = False
    taken: frozenset[str] = frozenset()
    items: dict[int, Run] = field(default_factory=dict)
    children: list[Story] = field(default_factory=list)
    older: int = 0  # how many children it had before these


@dataclass
class Story:
    """One execution: as it must end if nothing that another branch's failure does stops it, or as it was seen."""

    status: str
    output: Any = None
    runs: dict[str, Run] = field(default_factory=dict)
    error: tuple[str, str] | None = None  # node and type, of one that was seen
    id: str = ""  # of one that was seen


class Fails(Exception):
    """What a node fails with."""

    def __init__(self, kind: str, message: str | None = None, *, permanent: bool = True) -> None:
        self.kind, self.message, self.permanent = kind, message, permanent


@dataclass
class Reference:
    """Tell stories of executions of these workflows, whose nodes do what `act` says."""

    workflows: Mapping[str, Workflow]
    act: Callable[[Mapping[str, Any], str, int, int, Any, bool], Any]
    evaluate: Callable[[str, Any], Any]  # an expression, over a scope
    healed: bool = False

    def story(self, workflow_id: str, data: Any, begun: Story | None = None) -> Story:
        """Tell one execution: from its start, or from what a retry finds of it."""
        return _Telling(self, self.workflows[workflow_id], data, begun.runs if begun else {}).story()

    def search(self, expression: str | Mapping[str, str], scope: Any) -> Any:
        """Evaluate an expression, or each of a mapping. Raises Fails."""
        if not isinstance(expression, str):
            return {name: self.search(one, scope) for name, one in expression.items()}
        try:
            return self.evaluate(expression, scope)
        except (ArithmeticError, TypeError, ValueError) as error:
            raise Fails("PermanentError") from error


class _Telling:
    def __init__(self, reference: Reference, workflow: Workflow, data: Any, begun: Mapping[str, Run]) -> None:
        self.reference, self.data, self.begun = reference, data, begun
        self.nodes = {node.id: node for node in workflow.nodes}
        self.edges: dict[str, dict[str, Input]] = {name: {} for name in self.nodes}  # where from, where to
        for node in workflow.nodes:
            for edge in node.inputs:
                self.edges[edge.node][node.id] = edge
        self.runs: dict[str, Run] = {}

    def story(self) -> Story:
        runs = {name: self._reach(name) for name in self.nodes}
        sinks = sorted(name for name, edges in self.edges.items() if not edges)
        left = {name: runs[name].data for name in sinks if runs[name].status == "completed" or runs[name].handled}
        if any(run.status == "failed" and not run.handled for run in runs.values()):
            return Story("failed", None, runs)
        return Story("completed", left if len(sinks) > 1 else next(iter(left.values()), None), runs)

    def _reach(self, name: str) -> Run:
        if name not in self.runs:
            begun = self.begun.get(name, Run())
            self.runs[name] = begun if begun.status in ENDED else self._run(self.nodes[name], begun)
        return self.runs[name]

    def _run(self, node: Node, begun: Run) -> Run:
        parents = {name: self._reach(name) for name in node.parents}
        if any(run.status == "absent" or (run.status == "failed" and not run.handled) for run in parents.values()):
            return Run()  # it was not to be reached
        results = {name: run.data for name, run in parents.items() if node.id in run.taken}
        if parents and not results:
            return Run("skipped", older=begun.older)
        scope = {"input": self.data, "nodes": results}
        if node.map is not None:
            return self._leave(node, self._mapped(node, node.map.over, node.map.tolerated_failures, scope, begun))
        data = next(iter(results.values())) if len(node.inputs) == 1 else results or self.data
        run = Run(attempt=begun.attempt, older=begun.older)
        return self._leave(node, run, self._attempts(node, 0, run, data, scope, begun))

    def _mapped(self, node: Node, over: str, tolerated_failures: int, scope: Mapping[str, Any], begun: Run) -> Run:
        run = Run("completed")
        try:
            elements = self.reference.search(over, scope)
            if not isinstance(elements, list):
                return _fail(run, Fails("PermanentError"), node)
            scopes = [{**scope, "item": one, "index": index} for index, one in enumerate(elements)]
            shape = "item" if node.mapping is None else node.mapping
            elements = [self.reference.search(shape, one) for one in scopes]
        except Fails as failed:
            return _fail(run, failed, node)
        for number, element in enumerate(elements, start=1):
            run.items[number] = item = begun.items.get(number, Run())
            if item.status not in ENDED:
                run.items[number] = Run(attempt=item.attempt, older=item.older)
                self._attempts(node, number, run.items[number], element, {**scope, "nodes": {}}, item)
        run.data = [item.data for item in run.items.values()]
        failures = sum(item.status == "failed" for item in run.items.values())
        return _fail(run, Fails("ItemsFailed"), node) if failures > tolerated_failures else run

    def _attempts(self, node: Node, item: int, run: Run, data: Any, scope: Any, begun: Run) -> Sequence[str] | None:
        """Run a node, or one of its items, attempt after attempt; return where its handler routes to."""
        child = begun.children[0] if begun.children else None
        while True:
            try:
                shaped = data if item or node.mapping is None else self.reference.search(node.mapping, scope)
                return self._attempt(node, item, run, shaped, scope, child)
            except Fails as failed:
                _fail(run, failed, node)
                policy, child = node.retry, None
                wanted = failed.kind not in policy.no_retry_on and failed.kind in (policy.retry_on or [failed.kind])
                if failed.permanent or not wanted or run.attempt >= policy.max_attempts:
                    return None
                run.attempt += 1

    def _attempt(self, node: Node, item: int, run: Run, data: Any, scope: Any, child: Any) -> Sequence[str] | None:
        outcome, route = "completed", None
        if node.type == "delay":
            seconds = self.reference.search(node.config["expression"], scope) if "expression" in node.config else 0
            if not isinstance(seconds, int | float) or isinstance(seconds, bool) or seconds < 0:
                raise Fails("PermanentError")
        elif node.type == "workflow":
            if node.config["workflow"] not in self.reference.workflows:
                raise Fails("UnknownWorkflow")
            if child is None or child.status not in ENDED:
                child = self.reference.story(node.config["workflow"], data, child)
            run.children.append(child)
            if child.status == "failed":
                raise Fails("ChildFailed", permanent=False)
            data = self.reference.search(node.config.get("output", "@"), child.output)
        else:
            found = self.reference.act(node.config, node.id, item, run.attempt, data, self.reference.healed)
            run.calls += 1 + found.later
            if found.error:
                raise Fails(found.error, found.message, permanent=found.permanent)
            if item and found.route is not None:
                raise Fails("RoutingFailed")
            outcome, data, route = found.outcome, found.data, found.route
        run.status, run.data, run.error = outcome, data, None
        return route

    def _leave(self, node: Node, run: Run, route: Sequence[str] | None = None) -> Run:
        """Decide which edges of an ended run are taken, and whether its failure is handled."""
        edges = self.edges[node.id]
        if run.status == "completed":
            open_to = {target for target, edge in edges.items() if edge.on != "failure"}
            named = {target for target in open_to if route is None or target in route or edges[target].on == "always"}
            held = {target: self._holds(edges[target], run.data) for target in named}
            run.taken = frozenset(target for target in held if held[target])
            if None in held.values() or not open_to.issuperset(route or ()):
                _fail(run, Fails("RoutingFailed"), node)
        if run.status == "failed":
            can_go = {target for target, edge in edges.items() if self._holds(edge, run.data)}
            meant = {target for target in can_go if edges[target].on != "success"}
            run.taken = frozenset(meant or (can_go if node.continue_on_fail else ()))
            run.handled = bool(meant) or node.continue_on_fail
        return run

    def _holds(self, edge: Input, data: Any) -> bool | None:
        """Tell whether an edge's condition holds; None if it can't be evaluated."""
        try:
            value = edge.when is None or self.reference.search(edge.when, data)
        except Fails:
            return None
        return not (value is None or value is False or value in ("", [], {}))


def _fail(run: Run, failed: Fails, node: Node) -> Run:
    run.status, run.error = "failed", failed.kind
    run.data = {"error": {"type": failed.kind, "message": failed.message, "node_id": node.id}}
    return run
