"""Compares two layouts of node runs on Postgres under load: open rows in a table of their own, or one wide table.

Hot and cold: a small table of open runs, which a row leaves when it ends, and an insert-mostly table of results.
One table: the row stays, and its status, result and partial indexes change in place.

    python bench/storage.py postgresql://user@host/scratch --processes 2 --seconds 5

Each process runs chains of four nodes: queue, claim, three ends that start the next node in the same transaction, and
the last end. Both layouts begin with a history of ended runs and take turns, three rounds; medians are printed. It
makes and drops the schema `storage_bench`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from dataclasses import dataclass
from typing import Any

import psycopg

from spanloom.engine.ids import uuid7

ROUNDS = 3
NODES = 4
SWEEP_EVERY = 100  # chains
PAYLOAD = '{"text": "' + "lorem ipsum " * 40 + '"}'

COLUMNS = """
    execution_id uuid, node_id text collate "C", status text not null, node_type text not null, queue text not null,
    pending integer not null, taken integer not null, fence bigint not null, attempt integer not null,
    worker_id text, due_at timestamptz, push integer not null, pushed_at timestamptz, started_at timestamptz
"""
QUEUED = """
    insert into {table} (execution_id, node_id, status, node_type, queue, pending, taken, fence, attempt, due_at, push,
                         pushed_at)
    values (%(id)s, %(node)s, 'queued', 'work', 'default', 0, 1, 0, 1, now() + interval '2 seconds', 1, now())
"""
CLAIM = """
    update {table} set status = 'running', fence = fence + 1, worker_id = %(worker)s, due_at = null, started_at = now()
    where execution_id = %(id)s and node_id = %(node)s and status = 'queued'
"""
NEXT = """
    insert into {table} (execution_id, node_id, status, node_type, queue, pending, taken, fence, attempt, worker_id,
                         push, started_at)
    values (%(id)s, %(next)s, 'running', 'work', 'default', 0, 1, 1, 1, %(worker)s, 0, now())
"""


@dataclass(frozen=True)
class Layout:
    """One way to keep node runs: its tables, and the `with` clauses that end a run."""

    name: str
    open_table: str
    tables: str
    history: str
    end: str

    def statements(self) -> dict[str, bytes]:
        """Return the statements of a chain's life; each is one transaction."""
        texts = {
            "queue": QUEUED.format(table=self.open_table),
            "claim": CLAIM.format(table=self.open_table),
            "step": f"with {self.end} {NEXT.format(table=self.open_table)}",
            "last": f"with {self.end} select",
            "sweep": f"select execution_id from {self.open_table} where due_at <= statement_timestamp() limit 500",
        }
        return {name: text.encode() for name, text in texts.items()}


HOT_AND_COLD = Layout(
    "hot and cold apart",
    "storage_bench.open_runs",
    f"""
    create table storage_bench.open_runs ({COLUMNS}, primary key (execution_id, node_id));
    create index on storage_bench.open_runs (due_at) where due_at is not null;
    create index on storage_bench.open_runs (worker_id) where worker_id is not null;
    create table storage_bench.results (
        execution_id uuid, node_id text collate "C", status text not null, data text, error text,
        attempt integer not null, fence bigint not null, worker_id text, started_at timestamptz, ended_at timestamptz,
        primary key (execution_id, node_id)
    );
    """,
    """
    insert into storage_bench.results
        (execution_id, node_id, status, data, attempt, fence, worker_id, started_at, ended_at)
    select md5(n::text)::uuid, 'n1', 'completed', %(data)s, 1, 1, 'w', now(), now() from generate_series(1, %(rows)s) n
    """,
    """
    gone as (
        delete from storage_bench.open_runs
        where execution_id = %(id)s and node_id = %(node)s and status = 'running' and fence = 1
        returning attempt, fence, worker_id, started_at
    ),
    ended as (
        insert into storage_bench.results
            (execution_id, node_id, status, data, attempt, fence, worker_id, started_at, ended_at)
        select %(id)s::uuid, %(node)s, 'completed', %(data)s, attempt, fence, worker_id, started_at, now() from gone
    )
    """,
)

ONE_TABLE = Layout(
    "one table",
    "storage_bench.runs",
    f"""
    create table storage_bench.runs (
        {COLUMNS}, data text, error text, ended_at timestamptz, primary key (execution_id, node_id)
    );
    create index on storage_bench.runs (due_at) where due_at is not null;
    create index on storage_bench.runs (worker_id) where status = 'running';
    """,
    """
    insert into storage_bench.runs (
        execution_id, node_id, status, node_type, queue, pending, taken, fence, attempt, worker_id, push, pushed_at,
        started_at, data, ended_at
    )
    select md5(n::text)::uuid, 'n1', 'completed', 'work', 'default', 0, 1, 1, 1, 'w', 1, now(), now(), %(data)s, now()
    from generate_series(1, %(rows)s) n
    """,
    """
    ended as (
        update storage_bench.runs set status = 'completed', data = %(data)s, ended_at = now()
        where execution_id = %(id)s and node_id = %(node)s and status = 'running' and fence = 1
    )
    """,
)


def run_chains(url: str, layout: Layout, number: int, until: float, answers: Any) -> None:
    """Run chains until the time is up and answer how many nodes ended."""
    statements = layout.statements()
    nodes = 0
    # As in the store: a plan made while a table is small would read it whole for ever.
    by_key = "-c enable_seqscan=off -c plan_cache_mode=force_generic_plan"
    with psycopg.connect(url, autocommit=True, prepare_threshold=0, options=by_key) as connection:

        def run(name: str, execution: str, node: int) -> None:
            values = {
                "id": execution,
                "node": f"n{node}",
                "next": f"n{node + 1}",
                "worker": f"w{number}",
                "data": PAYLOAD,
            }
            connection.execute(statements[name], values)

        while time.time() < until:
            execution = uuid7()
            run("queue", execution, 1)
            run("claim", execution, 1)
            for node in range(1, NODES):
                run("step", execution, node)
            run("last", execution, NODES)
            nodes += NODES
            if nodes % (NODES * SWEEP_EVERY) == 0:
                connection.execute(statements["sweep"])
    answers.put(nodes)


def measure(url: str, layout: Layout, processes: int, seconds: float, history: int) -> tuple[float, float]:
    """Return nodes per second, and bytes of write-ahead log per node."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("drop schema if exists storage_bench cascade")
        connection.execute("create schema storage_bench")
        connection.execute(layout.tables.encode())
        connection.execute(layout.history.encode(), {"rows": history, "data": PAYLOAD})
        connection.execute("vacuum (analyze)")
        connection.execute("checkpoint")  # both begin with the same full-page images to write
        before = connection.execute("select pg_current_wal_insert_lsn()").fetchone()
        answers: Any = multiprocessing.SimpleQueue()
        until = time.time() + seconds
        workers = [
            multiprocessing.Process(target=run_chains, args=(url, layout, number, until, answers))
            for number in range(processes)
        ]
        for worker in workers:
            worker.start()
        nodes = sum(answers.get() for _ in workers)
        for worker in workers:
            worker.join()
        written = connection.execute("select pg_current_wal_insert_lsn() - %s::pg_lsn", before).fetchone()
        connection.execute("drop schema storage_bench cascade")
    assert written is not None
    return nodes / seconds, float(written[0]) / nodes


def main() -> None:
    """Measure both layouts in turns and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--history", type=int, default=200_000, help="ended runs to begin with")
    given = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(ROUNDS):
        for layout in (HOT_AND_COLD, ONE_TABLE):
            found.setdefault(layout.name, []).append(
                measure(given.url, layout, given.processes, given.seconds, given.history)
            )
    medians = {
        name: [statistics.median(column) for column in zip(*rounds, strict=True)] for name, rounds in found.items()
    }
    for name, (rate, written) in medians.items():
        print(f"{name:20} {rate:8,.0f} nodes/s   {written:8,.0f} bytes of WAL a node")
    hot, one = medians[HOT_AND_COLD.name], medians[ONE_TABLE.name]
    print(f"{'hot and cold : one':20} {hot[0] / one[0]:8.2f} times     {hot[1] / one[1]:8.2f} times")


if __name__ == "__main__":
    main()
