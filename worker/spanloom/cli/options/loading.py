"""Loading an engine by `module:engine`, with an error that names the wrong part of it."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback
from types import ModuleType

from spanloom.engine import WorkflowEngine
from spanloom.engine.errors import ConfigurationError, SpanloomError

__all__ = ["load_engine"]


def load_engine(target: str) -> WorkflowEngine:
    """Import the engine at `module:name`, first from the working directory.

    Raises ConfigurationError if the text has another form, if the module can't be found, fails while it is imported or
    has no such name, or if the name is not a WorkflowEngine.
    """
    module_name, colon, path = target.partition(":")
    if not (module_name and colon and path):
        raise ConfigurationError(f"{target!r} does not name an engine; write MODULE:ENGINE, such as orders:engine")
    module = _import(module_name)
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


def _import(name: str) -> ModuleType:
    directory = os.getcwd()
    if directory not in sys.path:
        sys.path.insert(0, directory)
    try:
        return importlib.import_module(name)
    except SpanloomError:
        raise  # already a sentence for the module's author
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise ConfigurationError(
                f"there is no module {error.name!r} in {directory} or among the installed packages; "
                f"write MODULE:ENGINE as Python would import it, and run this where it can be imported"
            ) from error
        raise ConfigurationError(
            f"importing {name!r} failed{_where(error)}: {type(error).__name__}: {error}\n"
            f"mend the module; SPANLOOM_DEBUG=1 shows the whole traceback"
        ) from error


def _where(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return ""  # its text has file and line
    # The user's own innermost line, not that of a library it called.
    directory = os.getcwd()
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename.startswith(directory) and "site-packages" not in frame.filename
    ]
    return f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def _suggestion(module: ModuleType, wanted: str) -> str:
    engines = sorted(name for name, value in vars(module).items() if isinstance(value, WorkflowEngine))
    if not engines:
        return f"no engine is defined there: engine = WorkflowEngine(…) at the top level of {module.__name__}"
    close = difflib.get_close_matches(wanted, engines, n=1)
    return f"did you mean {module.__name__}:{(close or engines)[0]}?"
