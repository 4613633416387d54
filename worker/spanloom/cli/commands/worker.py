"""`spanloom worker`: run node jobs, in this process or in several that are looked after."""

from __future__ import annotations

import click

from spanloom.cli.options.loading import load_engine
from spanloom.cli.options.parameters import duration
from spanloom.cli.options.target import check_shared
from spanloom.engine import WorkflowEngine
from spanloom.engine.errors import ConfigurationError
from spanloom.worker import Listen, WorkerOptions, serve, supervise, worker_options
from spanloom.worker.process.endpoints import check_free
from spanloom.worker.process.log_setup import configure_logging

__all__ = ["worker"]

_DEFAULTS = WorkerOptions()


@click.command()
@click.argument("app", metavar="MODULE:ENGINE", envvar="SPANLOOM_APP")
@click.option(
    "--processes", type=click.IntRange(1, 256), default=1, show_default=True, metavar="N", help="How many processes."
)
@click.option(
    "--concurrency",
    type=int,
    default=_DEFAULTS.concurrency,
    show_default=True,
    metavar="N",
    help="How many nodes run at once in each process.",
)
@click.option(
    "--queues",
    default=",".join(_DEFAULTS.queues),
    show_default=True,
    callback=lambda ctx, param, value: _queues(value),
    metavar="NAME,…",
    help="Which queues to serve; an earlier one goes first.",
)
@click.option("--name", metavar="NAME", help="What to call it.  [default: host, process and a random part]")
@click.option(
    "--grace",
    type=duration,
    default=f"{_DEFAULTS.grace_seconds:g}s",
    show_default=True,
    metavar="DURATION",
    help="How long running nodes have to end after SIGTERM or Ctrl-C.",
)
@click.option(
    "--lease",
    type=duration,
    default=f"{_DEFAULTS.lease_seconds:g}s",
    show_default=True,
    metavar="DURATION",
    help="How long after its last heartbeat a worker's nodes go to another one.",
)
@click.option(
    "--max-recovery-attempts",
    type=int,
    default=_DEFAULTS.max_recovery_attempts,
    show_default=True,
    metavar="N",
    help="How often a node may be lost with its worker before it fails.",
)
@click.option(
    "--isolation",
    type=duration,
    default=f"{_DEFAULTS.isolation_seconds:g}s",
    show_default=True,
    metavar="DURATION",
    help="How long the other nodes of a worker wait while one runs alone that one more loss would fail.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default=_DEFAULTS.log_level,
    show_default=True,
    help="The least severe lines that are written, and kept with nodes.",
)
@click.option("--capture-output", is_flag=True, help="Keep what handlers print as log lines of their nodes, too.")
@click.option(
    "--metrics-port",
    type=click.IntRange(1, 65535),
    envvar="SPANLOOM_METRICS_PORT",
    metavar="PORT",
    help="Serve /metrics, /healthz and /readyz there; the next processes on the next ports. "
    "[env: SPANLOOM_METRICS_PORT]",
)
@click.option(
    "--metrics-host",
    default="127.0.0.1",
    show_default=True,
    envvar="SPANLOOM_METRICS_HOST",
    metavar="HOST",
    help="On which address; 0.0.0.0 in a container. [env: SPANLOOM_METRICS_HOST]",
)
@click.option("--burst", is_flag=True, help="End when nothing is left to do.")
def worker(
    app: str,
    processes: int,
    concurrency: int,
    queues: tuple[str, ...],
    name: str | None,
    grace: float,
    lease: float,
    max_recovery_attempts: int,
    isolation: float,
    log_level: str,
    capture_output: bool,
    metrics_port: int | None,
    metrics_host: str,
    burst: bool,
) -> int:
    """Run node jobs until told to stop.

    MODULE:ENGINE names a WorkflowEngine, which brings its handlers, store and Redis; SPANLOOM_APP names it, too.
    SIGTERM or Ctrl-C: nothing new is started, running nodes have their grace, the rest goes back to the queue; then it
    exits with 0. With several processes, one that dies is replaced.

    With --metrics-port it serves /metrics for Prometheus; /healthz, which is 200 while its loop goes round; and
    /readyz, which is 503, and says why, while it does not work: its store or Redis does not answer, the store's schema
    is another release's, or it stops. They ask for no password, so without --metrics-host only this machine sees them.

    \b
      spanloom worker orders:engine --processes 4 --concurrency 8 --queues high,default
    """
    if name is not None and processes > 1:
        raise ConfigurationError("--name is for one worker; leave it out with --processes")
    engine = load_engine(app)
    options = worker_options(
        queues=queues,
        concurrency=concurrency,
        name=name,
        grace_seconds=grace,
        lease_seconds=lease,
        max_recovery_attempts=max_recovery_attempts,
        isolation_seconds=isolation,
        log_level=log_level,
        capture_output=capture_output,
        burst=burst,
    )
    if processes == 1:
        return serve(engine, options, listen=Listen(metrics_port, metrics_host) if metrics_port else None)
    if metrics_port is not None and metrics_port + processes > 65536:
        raise ConfigurationError(
            f"--metrics-port {metrics_port} leaves no ports for {processes} processes; give one of at most "
            f"{65536 - processes}"
        )
    if metrics_port is not None:
        check_free(Listen(metrics_port, metrics_host), processes)
    _check(engine)
    configure_logging(engine.settings.log_format)
    own = ["worker", app, "--processes", "1", "--concurrency", str(concurrency), "--queues", ",".join(queues)]
    own += ["--grace", str(grace), "--lease", str(lease), "--isolation", str(isolation)]
    own += ["--max-recovery-attempts", str(max_recovery_attempts)]
    own += ["--log-level", log_level]
    own += ["--capture-output"] if capture_output else []
    own += ["--burst"] if burst else []
    own += ["--metrics-host", metrics_host] if metrics_port else []
    return supervise(own, processes, options, metrics_port=metrics_port)


def _queues(text: str) -> tuple[str, ...]:
    queues = tuple(queue.strip() for queue in text.split(","))
    if not all(queues):
        raise click.BadParameter(
            f"{text!r} is no list of queues; write their names with commas between, such as high,default"
        )
    return queues


def _check(engine: WorkflowEngine) -> None:
    """Raise here, once, what would keep every one of the processes from starting."""
    check_shared(engine.store)
    try:
        engine.queue.ping()
        engine.open()
    finally:
        engine.close()
