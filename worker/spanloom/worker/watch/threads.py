"""The threads of Python, which a worker can't do without."""

from __future__ import annotations

import sys

from spanloom.engine.errors import ConfigurationError

__all__ = ["check_threads"]


def check_threads() -> None:
    """Raise ConfigurationError if threads are no threads here: a worker needs some that go on while others wait."""
    for module, patched in (("gevent.monkey", "is_module_patched"), ("eventlet.patcher", "is_monkey_patched")):
        check = getattr(sys.modules.get(module), patched, None)
        if check is not None and (check("threading") or check("thread")):
            library = module.partition(".")[0]
            raise ConfigurationError(
                f"{library} has replaced Python's threads, and a worker can't run without them; leave monkey patching "
                f"out of the module that the worker imports, or write {library}.monkey.patch_all(thread=False)"
            )
