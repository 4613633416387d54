"""What a workflow must come to, told by plain recursion over its definition: nothing runs at once, nothing waits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from differential.outcome import ENDED, Run, Story
from differential.rules import Fails, after_failure, after_success, failure, retries, search, shaped
from spanloom.engine.definitions import Input, Node, Workflow


@dataclass
class Reference:
    """Tell stories of executions of these workflows, whose nodes do what `act` says."""

    workflows: Mapping[str, Workflow]
    act: Callable[[Mapping[str, Any], str, int, int, Any, bool], Any]
    healed: bool = False

    def story(self, workflow_id: str, data: Any, told: Story | None = None, seen: Story | None = None) -> Story:
        """Tell one execution: from its start, or from where it was seen to have failed, and what was told of it."""
        return _Telling(self, self.workflows[workflow_id], data, told, seen).story()


class _Telling:
    def __init__(
        self, reference: Reference, workflow: Workflow, data: Any, told: Story | None, seen: Story | None
    ) -> None:
        self.reference, self.data, self.told, self.seen = reference, data, told, seen
        self.nodes = {node.id: node for node in workflow.nodes}
        self.edges: dict[str, list[tuple[str, Input]]] = {name: [] for name in self.nodes}
        for node in workflow.nodes:
            for edge in node.inputs:
                self.edges[edge.node].append((node.id, edge))
        self.runs: dict[str, Run] = {}
        self.undone: set[str] = set()
        for name, run in told.runs.items() if told and seen else ():
            if run.handled and seen and name in seen.runs and seen.runs[name].status == "failed":
                self._undo(name)

    def _undo(self, name: str) -> None:
        for target, _ in self.edges[name]:
            if target not in self.undone:
                self.undone.add(target)
                self._undo(target)

    def story(self) -> Story:
        for name in self.nodes:
            self._reach(name)
        sinks = sorted(name for name, edges in self.edges.items() if not edges)
        ended = {name: self.runs[name] for name in sinks}
        left = {name: run.data for name, run in ended.items() if run.status == "completed" or run.handled}
        if any(run.status == "failed" and not run.handled for run in self.runs.values()):
            return Story("failed", None, self.runs)
        return Story("completed", left if len(sinks) > 1 else next(iter(left.values()), None), self.runs)

    def _reach(self, name: str) -> Run:
        if name not in self.runs:
            self.runs[name] = self._run(self.nodes[name])
        return self.runs[name]

    def _run(self, node: Node) -> Run:
        seen = self.seen.runs.get(node.id) if self.seen else None
        if self.told and seen and seen.status in ("completed", "skipped") and node.id not in self.undone:
            return self.told.runs[node.id].kept()
        parents = {name: self._reach(name) for name in node.parents}
        if any(run.status == "absent" or (run.status == "failed" and not run.handled) for run in parents.values()):
            return Run()
        results = {name: run.data for name, run in parents.items() if node.id in run.taken}
        older = len(self._children(node.id, 0))
        if parents and not results:
            return Run("skipped", older=older)
        told = self.told.runs[node.id] if self.told and seen else None
        if node.id in self.undone:
            told = seen = None
        if node.map is not None:
            return self._left(node, *self._mapped(node, results, told, seen))
        return self._left(node, *self._once(node, 0, lambda: self._data(node, results), results, told, seen, older))

    def _children(self, name: str, item: int) -> list[Story]:
        run = self.seen.runs.get(name) if self.seen else None
        run = run.items.get(item) if run and item else run
        return run.children if run else []

    def _data(self, node: Node, results: Mapping[str, Any]) -> Any:
        if node.mapping is not None:
            return shaped(node.mapping, {"input": self.data, "nodes": results})
        if not node.inputs:
            return self.data
        return next(iter(results.values())) if len(node.inputs) == 1 else dict(results)

    def _once(
        self, node: Node, item: int, data: Callable[[], Any], results: Any, told: Run | None, seen: Run | None,
        older: int,
    ) -> tuple[Run, Any]:  # fmt: skip
        """Run a node, or one of its items, attempt after attempt; return it with where its handler routes to."""
        still_open = seen is not None and seen.status not in ENDED
        run = Run(attempt=seen.attempt if seen and still_open else 1, older=older)
        child = None
        # An item that failed starts anew; what else had failed, or is woken by its latest child, goes on with that.
        goes_on = seen and (len(seen.children) == seen.attempt if still_open else not item)
        if told and seen and seen.children and goes_on:
            before = told.children[len(seen.children) - 1]
            retried = before.status == "failed"
            child = self._child(node, data(), before, seen.children[-1]) if retried else before.kept()
            run.older -= 1
        while True:
            try:
                return run, self._attempt(node, item, run, data(), results, child)
            except Fails as failed:
                run.status, run.error, run.data = "failed", failed.kind, failure(failed.kind, failed.message, node)
                if failed.permanent or not retries(node.retry, failed.kind) or run.attempt >= node.retry.max_attempts:
                    return run, None
                run.attempt, child = run.attempt + 1, None

    def _attempt(self, node: Node, item: int, run: Run, data: Any, results: Any, child: Story | None) -> Any:
        route = None
        if node.type == "delay":
            if text := node.config.get("expression"):
                value = search(text, {"input": self.data, "nodes": {} if item else results})
                if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
                    raise Fails("PermanentError")
        elif node.type == "workflow":
            if node.config["workflow"] not in self.reference.workflows:
                raise Fails("UnknownWorkflow")
            child = child or self._child(node, data)
            run.children.append(child)
            if child.status == "failed":
                raise Fails("ChildFailed", permanent=False)
            data = search(node.config["output"], child.output) if "output" in node.config else child.output
        else:
            found = self.reference.act(node.config, node.id, item, run.attempt, data, self.reference.healed)
            run.calls += 1 + found.later
            if found.error:
                raise Fails(found.error, found.message, permanent=found.permanent)
            if item and found.route is not None:
                raise Fails("RoutingFailed")
            data, route = found.data, found.route
            if found.outcome == "skipped":
                run.status, run.data, run.error = "skipped", None, None
                return None
        run.status, run.data, run.error = "completed", data, None
        return route

    def _child(self, node: Node, data: Any, told: Story | None = None, seen: Story | None = None) -> Story:
        return self.reference.story(node.config["workflow"], data, told, seen)

    def _mapped(self, node: Node, results: Any, told: Run | None, seen: Run | None) -> tuple[Run, None]:
        run = Run("failed")
        try:
            elements = self._elements(node, {"input": self.data, "nodes": results})
        except Fails as failed:
            run.error, run.data = failed.kind, failure(failed.kind, None, node)
            return run, None
        for number, one in enumerate(elements, start=1):
            run.items[number] = self._item(node, number, one, told, seen)
        failures = [item for item in run.items.values() if item.status == "failed"]
        if node.map is not None and len(failures) > node.map.tolerate:
            run.error, run.data = "ItemsFailed", failure("ItemsFailed", None, node)
        else:
            run.status, run.data = "completed", [item.data for item in run.items.values()]
        return run, None

    def _elements(self, node: Node, scope: Any) -> list[Any]:
        elements = search(node.map.over, scope) if node.map else None
        if not isinstance(elements, list):
            raise Fails("PermanentError")
        if node.mapping is None:
            return elements
        return [shaped(node.mapping, {**scope, "item": one, "index": at}) for at, one in enumerate(elements)]

    def _item(self, node: Node, number: int, data: Any, told: Run | None, seen: Run | None) -> Run:
        before = seen.items.get(number) if seen else None
        older = len(self._children(node.id, number))
        if told and seen and before and before.status in ENDED:
            if before.status != "failed" or seen.status != "failed":
                return told.items[number].kept()
            before = None
        before_told = told.items[number] if told and before else None
        return self._once(node, number, lambda: data, {}, before_told, before, older)[0]

    def _left(self, node: Node, run: Run, route: Any) -> Run:
        """Decide which edges of an ended run are taken, and whether its failure is handled."""
        edges = self.edges[node.id]
        if run.status == "completed":
            try:
                run.taken = after_success(edges, run.data, route)
            except Fails as failed:
                run.status, run.error, run.data = "failed", failed.kind, failure(failed.kind, None, node)
        if run.status == "failed":
            run.taken = after_failure(edges, run.data, ("failure", "always"))
            run.handled = bool(run.taken) or node.continue_on_fail
            if not run.taken and node.continue_on_fail:
                run.taken = after_failure(edges, run.data, ("success",))
        return run
