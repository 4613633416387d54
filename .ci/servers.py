"""Which servers the tests will start: prints them, and exits with 1 if they are others than a job asked for."""

from __future__ import annotations

import argparse

import psycopg
from redis import Redis

from spanloom.testing import postgres_server, redis_server


def redis_release() -> str:
    """Return the product and version of the Redis server that is found, such as `valkey-8.1.4`."""
    with redis_server() as server, Redis.from_url(server.url) as client:
        info = client.info("server")
    if info.get("server_name") == "valkey":
        return f"valkey-{info['valkey_version']}"
    return f"redis-{info['redis_version']}"


def postgres_release() -> str:
    """Return the version of the Postgres server that is found, such as `14.20`."""
    with postgres_server(fsync=False) as server, psycopg.connect(server.url) as connection:
        row = connection.execute("show server_version").fetchone()
    return str(row[0]).split()[0] if row else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--redis", default="", metavar="LINE", help="such as redis-6.2 or valkey-8 (default: any)")
    parser.add_argument("--postgres", default="", metavar="MAJOR", help="such as 14 (default: any)")
    wanted = parser.parse_args()
    wrong = 0
    for release, line in ((redis_release(), wanted.redis), (f"postgres-{postgres_release()}", wanted.postgres)):
        fits = not line or f"{release}.".startswith(f"{line}." if "-" in line else f"postgres-{line}.")
        print(release if fits else f"{release} is found, but this job is for {line}")
        wrong += not fits
    return min(wrong, 1)


if __name__ == "__main__":
    raise SystemExit(main())
