"""The worker's HTTP endpoints: `/metrics` for Prometheus, `/healthz` and `/readyz` for process managers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import NamedTuple

import structlog

from spanloom.engine.errors import ConfigurationError
from spanloom.worker.process.health import Health
from spanloom.worker.process.http_server import Answer, HttpServer

__all__ = ["Endpoints", "Listen", "check_free"]

_log = structlog.get_logger("spanloom.worker")


class Listen(NamedTuple):
    """The address at which a worker serves its endpoints.

    The default is this machine only: the endpoints expose names of workflows and hosts, and have no authentication.
    In a container, where probes come from outside, listen on 0.0.0.0.
    """

    port: int
    host: str = "127.0.0.1"


class Endpoints:
    """An HTTP server on threads of its own, from start() to stop(). Binds at once."""

    def __init__(self, listen: Listen, health: Health) -> None:
        """Bind the port. Raises ConfigurationError if it is taken, or the host is not an address of this machine."""
        self._health = health
        self._collecting = threading.Lock()  # the Prometheus exporter takes one collection at a time
        paths: dict[str, Callable[[], Answer]] = {
            "/metrics": self._metrics,
            "/healthz": lambda: _as_json(health.liveness(), "alive", "stuck"),
            "/readyz": lambda: _as_json(health.readiness(), "ready", "not ready"),
        }
        self._server = _bound(listen, paths)
        self._thread = threading.Thread(target=self._server.serve_forever, name="spanloom-endpoints", daemon=True)

    def start(self) -> None:
        """Serve requests from now on."""
        self._thread.start()
        host, port = self._server.server_address[:2]
        _log.info("endpoints_ready", host=host, port=port, paths=["/metrics", "/healthz", "/readyz"])

    def stop(self) -> None:
        """Stop serving, and free the port."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def _metrics(self) -> Answer:
        from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest

        with self._collecting:
            return 200, CONTENT_TYPE_LATEST, generate_latest(REGISTRY)


def check_free(listen: Listen, processes: int) -> None:
    """Raise ConfigurationError if one of `processes` consecutive ports is taken.

    Checked before the start, because a process that fails on its port later is restarted again and again.
    """
    for number in range(processes):
        _bound(listen._replace(port=listen.port + number), {}).server_close()


def _bound(listen: Listen, paths: dict[str, Callable[[], Answer]]) -> HttpServer:
    try:
        return HttpServer(listen.host, listen.port, paths)
    except OSError as error:
        raise ConfigurationError(
            f"can't serve metrics on {listen.host}:{listen.port} ({error.strerror}); "
            f"give another --metrics-port or --metrics-host, and each worker of a machine a port of its own"
        ) from error


def _as_json(problems: dict[str, str], good: str, bad: str) -> Answer:
    body = {"status": bad if problems else good, "problems": problems}
    return 503 if problems else 200, "application/json", json.dumps(body, ensure_ascii=False).encode() + b"\n"
