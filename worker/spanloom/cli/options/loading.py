"""Loading an engine by `module:engine`, with an error that names the wrong part of it."""

from __future__ import annotations

import difflib
from types import ModuleType

from spanloom.cli.options.importing import import_module
from spanloom.engine import WorkflowEngine
from spanloom.engine.errors import ConfigurationError

__all__ = ["load_engine"]


def load_engine(target: str, *, prints: bool = True) -> WorkflowEngine:
    """Import the engine at `module:name`, first from the working directory; see import_module for `prints`.

    Raises ConfigurationError if the text has another form, if the module can't be found, fails while it is imported or
    has no such name, or if the name is not a WorkflowEngine.
    """
    module_name, colon, path = target.partition(":")
    if not (module_name and colon and path):
        raise ConfigurationError(f"{target!r} does not name an engine; write MODULE:ENGINE, such as orders:engine")
    module = import_module(module_name, prints=prints)
    found: object = module
    for name in path.split("."):
        if not hasattr(found, name):
            raise ConfigurationError(f"module {module_name!r} has no {path!r}; {_suggestion(module, path)}")
        found = getattr(found, name)
    if not isinstance(found, WorkflowEngine):
        raise ConfigurationError(
            f"{target} is a {type(found).__name__}, not a WorkflowEngine; {_suggestion(module, path)}"
        )
    return found


def _suggestion(module: ModuleType, wanted: str) -> str:
    engines = sorted(name for name, value in vars(module).items() if isinstance(value, WorkflowEngine))
    if not engines:
        return f"no engine is defined there: engine = WorkflowEngine(…) at the top level of {module.__name__}"
    close = difflib.get_close_matches(wanted, engines, n=1)
    return f"did you mean {module.__name__}:{(close or engines)[0]}?"
