"""The deployment files against the code they deploy: what they name exists, under the name they give it."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from spanloom.cli.app import root
from spanloom.cli.options.loading import load_engine
from spanloom.engine import Settings
from spanloom.worker import WorkerOptions
from spanloom.worker.process.otel_sdk import SIGNALS

ROOT = Path(__file__).parents[1]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
COLLECTOR: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "otel-collector.yaml").read_text())
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()


def instructions(name: str) -> list[str]:
    """Return what follows each instruction `name` of the Dockerfile, continued lines joined."""
    joined = DOCKERFILE.replace("\\\n", " ")
    return [line.partition(" ")[2].strip() for line in joined.splitlines() if line.startswith(f"{name} ")]


def environment_names() -> Iterator[str]:
    for service in OURS.values():
        yield from service["environment"]
    for pairs in instructions("ENV"):
        yield from (pair.partition("=")[0] for pair in shlex.split(pairs))


def known_environment() -> set[str]:
    """Return every SPANLOOM_… variable that the engine or a command reads."""
    context = click.Context(root)
    worker = root.get_command(context, "worker")
    assert worker is not None
    read = {str(option.envvar) for option in worker.params if option.envvar}
    return read | {f"SPANLOOM_{name.upper()}" for name in Settings.model_fields}


def seconds(duration: str) -> float:
    found = re.fullmatch(r"(\d+)s", duration)
    assert found is not None, duration
    return float(found[1])


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_waits_for_services_that_are_there_in_a_way_that_they_offer(name: str) -> None:
    for other, wanted in SERVICES[name].get("depends_on", {}).items():
        assert other in SERVICES
        if wanted["condition"] == "service_healthy":
            assert "healthcheck" in SERVICES[other]
        else:
            assert wanted["condition"] == "service_completed_successfully"
            assert SERVICES[other]["restart"] in ("no", "on-failure"), f"{other} would start again for ever"


@pytest.mark.parametrize("name", SERVICES)
def test_the_volumes_of_a_service_are_declared(name: str) -> None:
    named = [volume.partition(":")[0] for volume in SERVICES[name].get("volumes", [])]
    assert set(named) <= COMPOSE["volumes"].keys()


def test_what_is_kept_survives_a_restart_of_its_service() -> None:
    assert SERVICES["redis"]["command"][-2:] == ["--appendonly", "yes"]
    assert SERVICES["redis"]["volumes"]
    assert SERVICES["postgres"]["volumes"]


def test_images_of_others_are_pinned_to_a_major_version() -> None:
    foreign = [service["image"] for service in SERVICES.values() if "build" not in service]
    bases = [image.partition(" ")[0] for image in instructions("FROM")]
    assert foreign
    assert bases
    for image in foreign + bases:
        assert re.fullmatch(r"[a-z]+:\d+(\.\d+)*(-[a-z]+)?", image), image


def test_our_services_run_the_image_that_compose_builds() -> None:
    assert OURS
    assert {service["image"] for service in OURS.values()} == {"spanloom"}


def test_the_environment_names_are_those_that_the_code_reads() -> None:
    names = {name for name in environment_names() if name.startswith("SPANLOOM_")}
    assert {"SPANLOOM_STORE_URL", "SPANLOOM_REDIS_URL", "SPANLOOM_APP"} <= names
    assert names <= known_environment()


@pytest.mark.parametrize("name", OURS)
def test_the_command_of_a_service_of_ours_is_one_of_the_cli_with_options_that_it_takes(name: str) -> None:
    subcommand, *arguments = OURS[name]["command"]
    context = click.Context(root)
    command = root.get_command(context, subcommand)
    assert command is not None

    app = OURS[name]["environment"]["SPANLOOM_APP"]
    command.make_context(subcommand, [*([app] if subcommand == "worker" else []), *arguments])


def test_a_worker_is_given_longer_to_stop_than_it_gives_its_nodes() -> None:
    worker = SERVICES["worker"]
    arguments = worker["command"]
    grace = seconds(arguments[arguments.index("--grace") + 1])
    assert grace == WorkerOptions().grace_seconds
    assert seconds(worker["stop_grace_period"]) > grace


def test_the_image_runs_the_command_as_a_user_without_rights() -> None:
    assert json.loads(instructions("ENTRYPOINT")[-1]) == ["spanloom"]
    assert json.loads(instructions("CMD")[-1])[0] == "worker"
    user = instructions("USER")[-1]
    assert user.isdigit()
    assert int(user) > 0
    assert f"useradd --uid {user} " in DOCKERFILE


def test_the_image_installs_extras_that_the_project_has() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = re.search(r"\.whl\)\[([a-z,-]+)\]", DOCKERFILE)
    assert wanted is not None
    assert {"postgres", "otlp"} <= set(wanted[1].split(",")) <= extras.keys()


def test_what_the_image_copies_is_there_and_not_ignored() -> None:
    kept = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().splitlines()
    copied = [path for line in instructions("COPY") for path in line.split()[:-1] if not path.startswith("--")]
    assert copied
    for path in copied:
        assert (ROOT / path).exists()
        assert f"!{path}" in kept


def test_the_app_that_the_image_runs_by_default_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = dict(pair.split("=", 1) for pairs in instructions("ENV") for pair in shlex.split(pairs))
    app = environment["SPANLOOM_APP"]
    assert OURS["worker"]["environment"]["SPANLOOM_APP"] == f"${{SPANLOOM_APP:-{app}}}"
    module = app.partition(":")[0]
    assert any(line.startswith(f"examples/{module}.py ") for line in instructions("COPY"))

    monkeypatch.chdir(ROOT / "examples")
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.setenv("SPANLOOM_STORE_URL", "memory://")
    monkeypatch.setenv("SPANLOOM_REDIS_URL", "redis://redis:6379/0")
    engine = load_engine(app)

    assert engine.store.url == "memory://", "the environment decides which store the image works on"
    assert engine.queue.location == "redis://redis:6379/0"


def test_the_collectors_pipelines_use_what_is_defined_and_all_of_it() -> None:
    pipelines = COLLECTOR["service"]["pipelines"]
    assert set(pipelines) == set(SIGNALS)
    for kind in ("receivers", "processors", "exporters"):
        assert {name for pipeline in pipelines.values() for name in pipeline[kind]} == set(COLLECTOR[kind])
    assert COLLECTOR["service"]["extensions"] == list(COLLECTOR["extensions"])


def test_the_collector_scrapes_a_service_of_ours() -> None:
    (scraped,) = COLLECTOR["receivers"]["prometheus"]["config"]["scrape_configs"]
    assert {name for one in scraped["dns_sd_configs"] for name in one["names"]} <= set(OURS)
