"""Workflow files, JSON or YAML."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spanloom.engine.arguments import FilePath, checked
from spanloom.engine.errors import ConfigurationError, WorkflowInvalid
from spanloom.engine.limits import MAX_DEFINITION_BYTES, MAX_NAME, shortened
from spanloom.engine.workflow.definition_bounds import check_json, check_yaml
from spanloom.engine.workflow.definitions import Workflow

__all__ = ["dump_workflow", "load_workflow", "workflow_json_schema"]

_YAML = frozenset({".yaml", ".yml"})
_KNOWN = _YAML | {".json"}


@checked
def load_workflow(path: FilePath | Path) -> Workflow:
    """Read a workflow from a .json, .yaml or .yml file.

    YAML is loaded safely, and by the rules of YAML 1.2: only true and false are booleans, so that `on` and `no` are
    words, and dates and 22:30 stay text. Raises ConfigurationError for a file that can't be read or parsed, with the
    line, and WorkflowInvalid with the place of each problem in it. The graph is checked by `validation.find_problems`.
    """
    file = Path(path)
    content = _parse(file, _text(file))
    if not isinstance(content, dict):
        raise ConfigurationError(f"{file} holds no workflow: it must be a mapping with id and nodes")
    try:
        return Workflow.read(content)
    except WorkflowInvalid as error:
        raise WorkflowInvalid(error.workflow_id, [f"{file}: {problem}" for problem in error.problems]) from error


@checked
def dump_workflow(workflow: Workflow, path: FilePath | Path) -> None:
    """Write a workflow to a .json, .yaml or .yml file, without defaults, inputs in their short form."""
    file = Path(path)
    _check_suffix(file)
    content: dict[str, Any] = workflow.model_dump(mode="json", exclude_defaults=True) | {"format": workflow.format}
    for node in content["nodes"]:
        if "inputs" in node:
            node["inputs"] = _short(node["inputs"])
    if file.suffix.lower() in _YAML:
        from spanloom.engine.workflow.yaml_text import dump_yaml

        text = dump_yaml(content)
    else:
        text = json.dumps(content, indent=2) + "\n"
    file.write_text(text, encoding="utf-8")


def workflow_json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a workflow file, for editors and for checks outside Python."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Workflow.model_json_schema()}


def _check_suffix(file: Path) -> None:
    if file.suffix.lower() not in _KNOWN:
        raise ConfigurationError(f"{file} is no workflow file by its name; it must end in .json, .yaml or .yml")


def _text(file: Path) -> str:
    _check_suffix(file)
    try:
        with file.open(encoding="utf-8-sig") as opened:
            return opened.read(MAX_DEFINITION_BYTES + 1)  # of more than that, as much as is needed to refuse it
    except FileNotFoundError:
        raise ConfigurationError(f"there is no workflow file {file}") from None
    except OSError as error:
        raise ConfigurationError(f"{file} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{file} is not UTF-8 text (at byte {error.start})") from error


def _parse(file: Path, text: str) -> Any:
    return _parse_yaml(file, text) if file.suffix.lower() in _YAML else _parse_json(file, text)


def _parse_json(file: Path, text: str) -> Any:
    try:
        check_json(text)
        return json.loads(text, object_pairs_hook=_each_key_once)
    except json.JSONDecodeError as error:
        raise ConfigurationError(
            f"{file} is not JSON: {error.msg}, line {error.lineno} column {error.colno}"
        ) from error
    except RecursionError as error:
        raise ConfigurationError(f"{file} can't be used: it is nested too deep") from error
    except ValueError as error:
        raise ConfigurationError(f"{file} can't be used: {error}") from error


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {shortened(key, MAX_NAME)!r} stands twice in one object")
            seen.add(key)
    return content


def _parse_yaml(file: Path, text: str) -> Any:
    from spanloom.engine.workflow.yaml_text import YamlProblem, parse_yaml

    try:
        check_yaml(text)
    except ValueError as error:
        raise ConfigurationError(f"{file} can't be used: {error}") from None
    try:
        return parse_yaml(text)
    except YamlProblem as error:
        raise ConfigurationError(f"{file} is not YAML: {error}") from error
    except RecursionError as error:
        raise ConfigurationError(f"{file} can't be used: it is nested too deep") from error


def _short(edges: list[dict[str, Any]]) -> Any:
    """Return edges in their short form, where it loses nothing: node ids in a list, or {parameter: node id}."""
    if all(edge.keys() == {"node"} for edge in edges):
        return [edge["node"] for edge in edges]
    if all(edge.keys() == {"node", "name"} for edge in edges) and len({edge["name"] for edge in edges}) == len(edges):
        return {edge["name"]: edge["node"] for edge in edges}
    return edges
