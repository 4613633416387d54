"""The import of a user's module, which may print, take long, fork, or end the process."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import sysconfig
import threading
import traceback
from collections.abc import Generator
from contextlib import contextmanager, nullcontext, redirect_stdout
from types import FrameType, ModuleType
from typing import NoReturn

from spanloom.cli.output import print_line, print_text
from spanloom.engine.errors import ConfigurationError, SpanloomError
from spanloom.engine.thread_stacks import frame_of

__all__ = ["import_module"]

_PATIENCE_SECONDS = 10.0
_MISTAKE = 2
_GUARD = "put what it does when it is run under `if __name__ == '__main__':`"


def import_module(name: str, *, prints: bool) -> ModuleType:
    """Import a module, first from the working directory.

    Without `prints`, its output goes to standard error: standard output is the command's. An import that takes long
    is mentioned on standard error. A process that the module forked and did not end is ended.

    Raises ConfigurationError if it can't be found, fails, or would end this process; SpanloomError as it is, and
    KeyboardInterrupt for Ctrl-C.
    """
    directory = os.getcwd()
    if directory not in sys.path:
        sys.path.insert(_place_after_standard_library(), directory)
    pid = os.getpid()
    pressed: list[int] = []
    try:
        with nullcontext() if prints else redirect_stdout(sys.stderr), _noting_time(name), _noting_ctrl_c(pressed):
            module = importlib.import_module(name)
    except BaseException as error:
        if os.getpid() != pid:
            _leave(error)
        if isinstance(error, SpanloomError) or (isinstance(error, KeyboardInterrupt) and pressed):
            raise  # already a sentence for the module's author, or the user's own wish
        raise _refusal(name, error) from error
    if os.getpid() != pid:
        print_line(f"spanloom: importing {name!r} forked this process, which ends here; {_GUARD}", stderr=True)
        _leave(SystemExit(_MISTAKE))
    return module


def _place_after_standard_library() -> int:
    """Return the place in sys.path from which a module hides installed packages, but none of Python's own."""
    paths = sysconfig.get_paths()
    standard = {os.path.realpath(paths[name]) for name in ("stdlib", "platstdlib")}
    standard |= {os.path.join(path, "lib-dynload") for path in standard}
    places = [place for place, path in enumerate(sys.path, 1) if os.path.realpath(path) in standard]
    return max(places, default=0)


def _refusal(name: str, error: BaseException) -> ConfigurationError:
    if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
        return ConfigurationError(
            f"there is no module {error.name!r} in {os.getcwd()} or among the installed packages; "
            f"write MODULE:ENGINE as Python would import it, and run this where it can be imported"
        )
    if isinstance(error, SystemExit | KeyboardInterrupt):
        ended = f"{type(error).__name__}({_text(error)})"
        return ConfigurationError(f"importing {name!r} ended the process{_where(error)}: {ended}\n{_GUARD}")
    return ConfigurationError(
        f"importing {name!r} failed{_where(error)}: {type(error).__name__}: {_text(error)}\n"
        f"mend the module; SPANLOOM_DEBUG=1 shows the whole traceback"
    )


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as failed:  # of the user's own class
        return f"(its message can't be read: {type(failed).__name__})"


def _where(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return ""  # its text has file and line
    return _at(traceback.extract_tb(error.__traceback__))


def _at(stack: traceback.StackSummary) -> str:
    """Return the user's own innermost line, not that of a library it called."""
    directory = os.getcwd()
    frames = [
        frame for frame in stack if frame.filename.startswith(directory) and "site-packages" not in frame.filename
    ]
    return f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""


@contextmanager
def _noting_time(name: str) -> Generator[None]:
    """Mention once, on standard error, an import that has not ended after some seconds, and where it is."""
    importing = threading.get_ident()

    def mention() -> None:
        frame = frame_of(importing)
        at = "" if frame is None else _at(traceback.extract_stack(frame))
        why = f"spanloom: importing {name!r} has not ended after {_PATIENCE_SECONDS:g} s{at}; {_GUARD}"
        print_line(why, stderr=True)

    timer = threading.Timer(_PATIENCE_SECONDS, mention)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def _noting_ctrl_c(pressed: list[int]) -> Generator[None]:
    """Add to a list when Ctrl-C is pressed: a module may raise KeyboardInterrupt by itself."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        signal.default_int_handler(number, frame)

    plain = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not plain or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, on_signal)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is on_signal:  # the module may have set its own
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(error: BaseException) -> NoReturn:
    """End a process that the module forked: it is a copy of this command, which goes on in its parent."""
    if not isinstance(error, SystemExit):
        print_text("".join(traceback.format_exception(error)).rstrip(), stderr=True)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    code = error.code if isinstance(error, SystemExit) else 1
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)
