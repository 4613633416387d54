"""A relay before a server's socket that counts round trips: how often a client sends after the server has answered."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

__all__ = ["CountingRelay", "counting_relay"]


class CountingRelay:
    """Connections to one server, and the round trips on all of them."""

    def __init__(self, path: Path, server: Path) -> None:
        self.round_trips = 0
        self._lock = threading.Lock()
        self._server = str(server)
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._relay, args=(client,), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        with suppress(OSError), client, socket.socket(socket.AF_UNIX) as server:
            server.connect(self._server)
            answered = True
            while True:
                for source in select.select([client, server], [], [])[0]:
                    if not (data := source.recv(65536)):
                        return
                    if source is server:
                        client.sendall(data)
                        answered = True
                        continue
                    if answered:
                        with self._lock:
                            self.round_trips += 1
                    answered = False
                    server.sendall(data)


@contextmanager
def counting_relay(path: Path, server: Path) -> Iterator[CountingRelay]:
    """Relay connections to a socket at `path` to that of a server, while the block lasts."""
    with closing(CountingRelay(path, server)) as relay:
        yield relay
