"""`spanloom worker`: runs node jobs, in supervised processes or in this one."""

from __future__ import annotations

from typing import Any

import click

from spanloom.cli.options.loading import load_engine
from spanloom.cli.options.model_fields import model_options
from spanloom.engine.errors import ConfigurationError
from spanloom.engine.settings import Settings
from spanloom.worker import Listen, WorkerOptions, serve, worker_options
from spanloom.worker.process.cpus import usable_cpus
from spanloom.worker.process.endpoints import check_free
from spanloom.worker.process.supervised import SupervisedProcess, become_supervisor

__all__ = ["worker"]

_MOST_PROCESSES = 4  #: by default: what they open together leaves room in the 100 connections of a default Postgres


@click.command()
@click.argument("app", metavar="MODULE:ENGINE", envvar="SPANLOOM_APP")
@click.option(
    "--processes",
    type=click.IntRange(1, 256),
    metavar="N",
    help=f"How many processes.  [default: one for each CPU, {_MOST_PROCESSES} at most; one with --name or --stall 0]",
)
@model_options(WorkerOptions)
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
def worker(app: str, processes: int | None, metrics_port: int | None, metrics_host: str, **fields: Any) -> int:
    """Run node jobs until told to stop.

    MODULE:ENGINE names a WorkflowEngine, which brings its handlers, store and Redis; SPANLOOM_APP names it, too.
    SIGTERM or Ctrl-C: nothing new is started, running nodes have their grace, the rest goes back to the queue; then it
    exits with 0. A second signal ends the grace. A supervisor replaces a process that dies, or that stands still
    (--stall). With one process and --stall 0 there is none. Handlers that compute use one CPU a process. Those that
    wait use next to none: give them --concurrency.

    With --metrics-port it serves /metrics for Prometheus; /healthz, which is 200 while its loop runs; and /readyz,
    which is 503, with the reason, while it does not work: its store or Redis does not answer, the store's schema is
    another release's, or it stops. They need no password, so without --metrics-host only this machine can reach them.

    \b
      spanloom worker orders:engine --processes 4 --concurrency 8 --queues high,default
    """
    if (supervised := SupervisedProcess.from_environment()) is not None:
        return serve(load_engine(app), supervised.options, listen=supervised.listen, app=app)
    options = worker_options(**fields)
    if processes is None:
        alone = options.name is not None or not options.stall_seconds
        processes = 1 if alone else min(usable_cpus(), _MOST_PROCESSES)
    if options.name is not None and processes > 1:
        raise ConfigurationError("--name is for one worker; leave it out with --processes")
    listen = Listen(metrics_port, metrics_host) if metrics_port else None
    if processes == 1 and not options.stall_seconds:
        return serve(load_engine(app), options, listen=listen, app=app)
    if metrics_port is not None and metrics_port + processes > 65536:
        raise ConfigurationError(
            f"--metrics-port {metrics_port} leaves no ports for {processes} processes; give one of at most "
            f"{65536 - processes}"
        )
    if listen is not None:
        check_free(listen, processes)
    return become_supervisor(app, processes, options, listen=listen, log_format=Settings.from_environment().log_format)
