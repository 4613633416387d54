"""Asking a worker's HTTP endpoints: what it counts, whether it is alive, whether it is ready."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from typing import Any, NamedTuple

from prometheus_client.parser import text_string_to_metric_families


class Sample(NamedTuple):
    """One line of what Prometheus would scrape."""

    name: str
    labels: dict[str, str]
    value: float


def free_ports(count: int = 1) -> int:
    """The first of so many ports in a row that nobody listens at."""
    while True:
        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            if port + count > 65536:
                continue
            try:
                for number in range(1, count):
                    with socket.socket() as other:
                        other.bind(("127.0.0.1", port + number))
            except OSError:
                continue
            return port


def get(port: int, path: str, timeout: float = 10) -> tuple[int, str]:
    """The status and body of an answer; an error's, too."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=timeout) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def problems(port: int, path: str = "/readyz") -> dict[str, str]:
    """What is wrong, as a worker tells it; the status must fit."""
    status, body = get(port, path)
    told: dict[str, Any] = json.loads(body)
    assert status == (503 if told["problems"] else 200)
    found: dict[str, str] = told["problems"]
    return found


def scrape(port: int) -> list[Sample]:
    status, text = get(port, "/metrics")
    assert status == 200, text
    return [
        Sample(sample.name, sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]


def value(samples: list[Sample], name: str, **labels: str) -> float:
    """The sum of the samples with that name and these labels."""
    return sum(one.value for one in samples if one.name == name and labels.items() <= one.labels.items())
