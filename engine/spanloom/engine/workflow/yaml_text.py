"""YAML text by the core schema of YAML 1.2, whose values are those of JSON."""

from __future__ import annotations

import math
import re
from typing import Any

import yaml
from yaml.constructor import ConstructorError

__all__ = ["YamlProblem", "dump_yaml", "parse_yaml"]

_TAG = "tag:yaml.org,2002:"
_NULL = re.compile(r"(?:~|null|Null|NULL|)\Z")
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")
_INT = re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z")
_NOT_FINITE = re.compile(r"(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z")
_RULES = (
    ("null", _NULL, ("~", "n", "N", "")),
    ("bool", _BOOL, tuple("tTfF")),
    ("int", _INT, tuple("-+0123456789")),
    ("float", _FLOAT, tuple("-+.0123456789")),
    ("float", _NOT_FINITE, tuple("-+.")),
)
_BASES = {"0o": 8, "0x": 16}
_BREAKS = re.compile("[\x85\u2028\u2029]")  # line breaks of YAML 1.1, and none of 1.2
_VALUES = "text, numbers, true, false, null, lists and mappings"


class YamlProblem(Exception):
    """Raised when text is not YAML, or holds a value without a form in JSON; its message has line and column."""

    def __init__(self, problem: str, line: int, column: int) -> None:
        super().__init__(f"{problem}, line {line} column {column}")


class _Loader(yaml.SafeLoader):
    """A loader without the types of YAML 1.1, which also refuses keys that are no text or stand twice."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Checked here, as merges change the node when they are resolved.
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag not in (f"{_TAG}str", f"{_TAG}merge"):
                raise _problem("a key is no text; put it in quotes", key)
            name = self.text(key)
            if name in seen:
                raise _problem(f"the key {name!r} stands twice in one mapping", key)
            seen.add(name)
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Resolve merges: a mapping's own keys win, then those of the mapping that is merged first."""
        if not any(key.tag == f"{_TAG}merge" for key, _ in node.value):
            return
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        merged: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        pairs, node.value = node.value, None
        for key, value in pairs:
            if key.tag != f"{_TAG}merge":
                own[self.text(key)] = (key, value)
                continue
            for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if not isinstance(source, yaml.MappingNode):
                    raise _problem("only mappings can be merged", source)
                if source.value is None:
                    raise _problem("a mapping merges itself", key)
                self.flatten_mapping(source)
                for pair in source.value:
                    merged.setdefault(self.text(pair[0]), pair)
        node.value = [*(pair for name, pair in merged.items() if name not in own), *own.values()]

    def text(self, node: yaml.ScalarNode) -> str:
        """Return a scalar as text, with the halves of each character beyond U+FFFF joined, as in JSON."""
        value = str(self.construct_scalar(node))
        if value.isascii():
            return value
        try:
            return value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise _problem("half of a surrogate pair is no character", node) from None

    def null(self, node: yaml.ScalarNode) -> None:
        """Check a null."""
        self._matched(node, _NULL, "null")

    def bool(self, node: yaml.ScalarNode) -> bool:
        """Return a boolean."""
        return self._matched(node, _BOOL, "true or false").lower() == "true"

    def int(self, node: yaml.ScalarNode) -> int:
        """Return an integer: decimal, also with leading zeros, or as 0o17 or 0x1F."""
        value = self._matched(node, _INT, "an integer")
        base = _BASES.get(value[:2])
        try:
            return int(value[2:], base) if base else int(value)
        except ValueError:
            raise _problem("an integer has too many digits", node) from None

    def float(self, node: yaml.ScalarNode) -> float:
        """Return a finite number."""
        if _NOT_FINITE.match(str(node.value)):
            raise _problem("a number that is not finite has no form in JSON", node)
        value = float(self._matched(node, _FLOAT, "a number"))
        if not math.isfinite(value):
            raise _problem("a number is too large", node)
        return value

    def unknown(self, node: yaml.Node) -> Any:
        """Refuse a tag."""
        tag = node.tag.replace(_TAG, "!!", 1)
        raise _problem(f"could not determine a constructor for the tag {tag!r}; a workflow file holds {_VALUES}", node)

    def _matched(self, node: yaml.ScalarNode, rule: re.Pattern[str], what: str) -> str:
        value = str(self.construct_scalar(node))
        if not rule.match(value):
            raise _problem(f"{value[:100]!r} is not {what}", node)
        return value


class _Dumper(yaml.SafeDumper):
    """A dumper that quotes text which YAML 1.1 or 1.2 would read as something else."""


def _write_text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    style = '"' if _BREAKS.search(value) else None  # in which these are escaped
    return dumper.represent_scalar(f"{_TAG}str", value, style)


_Loader.yaml_implicit_resolvers = {}
_Loader.yaml_constructors = {
    f"{_TAG}{kind}": yaml.SafeLoader.yaml_constructors[f"{_TAG}{kind}"] for kind in ("seq", "map")
}
_Dumper.add_representer(str, _write_text)
for _name, _rule, _first in _RULES:
    _Loader.add_implicit_resolver(f"{_TAG}{_name}", _rule, list(_first))
    _Dumper.add_implicit_resolver(f"{_TAG}{_name}", _rule, list(_first))
_Loader.add_implicit_resolver(f"{_TAG}merge", re.compile(r"<<\Z"), ["<"])
_Loader.add_constructor(f"{_TAG}str", _Loader.text)
_Loader.add_constructor(f"{_TAG}null", _Loader.null)
_Loader.add_constructor(f"{_TAG}bool", _Loader.bool)
_Loader.add_constructor(f"{_TAG}int", _Loader.int)
_Loader.add_constructor(f"{_TAG}float", _Loader.float)
_Loader.add_constructor(None, _Loader.unknown)


def parse_yaml(text: str) -> Any:
    """Return the value of YAML text: by the core schema of YAML 1.2, with merges (`<<`) as YAML 1.1 has them.

    Only true and false are booleans, so that `on` and `no` are words. Numbers are decimal, 0o17 or 0x1F: 22:30, 1_000
    and dates are text. Raises YamlProblem for anything else than JSON has, and RecursionError for deep nesting.
    """
    if (found := _BREAKS.search(text)) is not None:
        code = f"U+{ord(found[0]):04X}"
        raise _at(text, found.start(), f"the character {code} may be read as a line break; write it as an escape")
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        raise _at(text, error.position, f"the character U+{error.character:04X} is not allowed") from error
    try:
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark or loader.get_mark()
        problem = error.problem or error.context or "it can't be parsed"
        raise YamlProblem(problem, mark.line + 1, mark.column + 1) from error
    except (ValueError, OverflowError) as error:  # of an escape that is beyond Unicode
        mark = loader.get_mark()
        raise YamlProblem("an escape is no character", mark.line + 1, mark.column + 1) from error


def dump_yaml(content: Any) -> str:
    """Return JSON-like content as YAML text that `parse_yaml` reads back."""
    return str(yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def _problem(problem: str, node: yaml.Node) -> ConstructorError:
    return ConstructorError(None, None, problem, node.start_mark)


def _at(text: str, position: int, problem: str) -> YamlProblem:
    before = text[:position]
    return YamlProblem(problem, before.count("\n") + 1, position - before.rfind("\n"))
