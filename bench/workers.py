"""The worker processes of a system: started apart from our terminal, awaited, and ended."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from systems import WORKERS, BenchFailed

from spanloom.engine import SpanloomError

__all__ = ["log_tail", "worker_processes"]

_READY_SECONDS = 30.0
_END_SECONDS = 20.0
_HERE = Path(__file__).parent


@contextmanager
def worker_processes(
    command: Sequence[str],
    environment: Mapping[str, str],
    log_path: Path,
    count_ready: Callable[[], int],
    *,
    copies: int = WORKERS,
    workers: int | None = None,
) -> Generator[None]:
    """Run copies of `command` in this directory until the block ends.

    Begins once `count_ready` says as many as there are workers: by default one for each copy.
    Raises BenchFailed, with the end of their log, if one ends by itself or is not ready in time, and for whatever goes
    wrong inside the block.
    """
    processes: list[subprocess.Popen[bytes]] = []
    try:
        with log_path.open("wb") as log:
            processes.extend(
                subprocess.Popen(
                    command,
                    cwd=_HERE,
                    env={**os.environ, **environment},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C reaches the bench, which then ends its workers
                )
                for _ in range(copies)
            )
        wanted = copies if workers is None else workers
        deadline = time.monotonic() + (ready_seconds := _READY_SECONDS + wanted)
        while count_ready() < wanted:
            _check(processes, log_path)
            if time.monotonic() > deadline:
                raise BenchFailed(f"the workers were not ready after {ready_seconds:g} s:\n{log_tail(log_path)}")
            time.sleep(0.02)
        try:
            yield
        except (BenchFailed, SpanloomError) as error:
            raise BenchFailed(f"{error}\nits workers' log ends with:\n{log_tail(log_path)}") from error
        _check(processes, log_path)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _check(processes: Sequence[subprocess.Popen[bytes]], log_path: Path) -> None:
    for process in processes:
        if process.poll() is not None:
            raise BenchFailed(f"a worker ended with exit code {process.returncode}:\n{log_tail(log_path)}")


def log_tail(log_path: Path) -> str:
    """Return the last lines of a log, indented."""
    return "\n".join(f"  {line}" for line in log_path.read_text(errors="replace").splitlines()[-15:])
