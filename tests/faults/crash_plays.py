"""Many plays over one kind of store, several at once, each with a store, a namespace and a folder of its own."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from faults.crash_checks import look
from faults.crash_system import Arm, CrashSystem, Place, Played
from faults.effects import World
from spanloom.engine.store.port import ExecutionStore
from support.fork_server import ForkServer

AT_ONCE = 4  #: how many plays; each waits for leases and the sweep more than it works
_TRIES = 12  #: how often a point is armed that a play passes only by chance

_numbers = itertools.count(1)


class Plays:
    """Play the fixed workflows over one kind of store, several times at once, each in a place of its own."""

    def __init__(
        self,
        kind: str,
        fork_server: ForkServer,
        redis_url: str,
        folder: Path,
        new_store: Callable[[Path], Iterator[str]],
        settle: Callable[[], None],
    ) -> None:
        self.kind = kind
        self.fork_server = fork_server
        self._redis_url = redis_url
        self._folder = folder
        self._new_store = new_store
        self._settle = settle

    def play(self, arms: Sequence[Arm]) -> list[Played]:
        """Play once for each of `arms`. A play that did not come to its crash is played again."""

        def one(arm: Arm) -> Played:
            for _ in range(_TRIES):
                played = self._once(arm)
                if played.crashed or played.wrong or not arm.point:
                    break
            return played

        pool = ThreadPoolExecutor(AT_ONCE, "crash-play")
        try:
            return list(pool.map(one, arms))
        finally:
            pool.shutdown(cancel_futures=True)  # a test that is interrupted plays no more

    @contextmanager
    def place(self) -> Iterator[Place]:
        """Make a place for one system; it stays, with its logs, if the block raises."""
        number = next(_numbers)
        folder = self._folder / str(number)
        folder.mkdir()
        with contextmanager(self._new_store)(folder) as store_url:
            yield Place(store_url, self._redis_url, f"crash{number}", folder)
        shutil.rmtree(folder)  # hundreds of them would fill a disk

    def _once(self, arm: Arm) -> Played:
        with suppress(_WentWrong), self.place() as place:
            played = CrashSystem(self.fork_server, place, arm).play(self._look)
            if played.wrong:
                raise _WentWrong
        return played

    def _look(self, played: Played, store: ExecutionStore, world: World) -> None:
        self._settle()
        look(played, store, world)


class _WentWrong(Exception):
    """A play whose logs are to be kept."""
