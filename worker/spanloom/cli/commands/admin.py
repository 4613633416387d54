"""`spanloom migrate` and `spanloom stats`: a store's schema, and its counts."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime

import click

from spanloom.cli.options.parameters import json_option
from spanloom.cli.options.target import Target, target_options
from spanloom.cli.output import note_write_problem, print_json, print_line, show
from spanloom.cli.rendering import stats_lines, stats_table

__all__ = ["migrate", "stats"]


@click.command()
@target_options()
@json_option
def migrate(target: Target, as_json: bool) -> None:
    """Bring a store's schema to this release's version.

    Does nothing if it is there already; several at once are safe. SQLite stores are migrated by opening them, too.
    """
    store = target.find_store()
    try:
        store.migrate()
        store.health()
    finally:
        store.close()
    if as_json:
        print_json({"url": store.url, "migrated": True})
    else:
        print_line(f"{store.url} has the schema of this release")


@click.command()
@target_options()
@json_option
def stats(target: Target, as_json: bool) -> None:
    """Count executions, open node runs and workers.

    In a pipe a line is a tab-separated name and count, then for each worker `worker`, name, host, pid, queues, running
    node runs. With --json: the store's counts, and "live_workers".
    """
    with target.store() as store:
        counts, workers = store.stats(), store.list_workers()
        note_write_problem(store)
    if as_json:
        leases = [
            asdict(worker)
            | {"started_at": worker.started_at.isoformat(), "lease_until": worker.lease_until.isoformat()}
            for worker in workers
        ]
        print_json(dict(counts) | {"live_workers": leases})
        return
    show(lambda screen: stats_table(counts, workers, datetime.now(UTC)), lambda: stats_lines(counts, workers))
