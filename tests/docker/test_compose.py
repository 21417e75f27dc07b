"""compose.yaml: every service is confined, and nothing is published beyond loopback."""

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]

every_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)


def test_the_services_are_a_database_a_coordinator_and_two_clients() -> None:
    assert list(SERVICES) == ["database", "coordinator", "client-0", "client-1"]


@every_service
def test_a_service_is_confined(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "cap_add" not in service
    assert "privileged" not in service
    assert "network_mode" not in service
    assert any(mount.startswith("/tmp") for mount in service["tmpfs"])


@every_service
def test_a_service_is_bounded_and_comes_back(service: dict[str, Any]) -> None:
    assert service["restart"] == "unless-stopped"
    assert service["init"] is True
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}
    assert set(service["logging"]["options"]) == {"max-size", "max-file"}


@every_service
def test_nothing_is_published_beyond_loopback(service: dict[str, Any]) -> None:
    assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", []))


def test_only_the_coordinator_reaches_the_database() -> None:
    assert COMPOSE["networks"]["database"] == {"internal": True}
    reached = [name for name, service in SERVICES.items() if "database" in service["networks"]]
    assert reached == ["database", "coordinator"]
    assert "ports" not in SERVICES["database"]


@every_service
def test_files_of_the_host_are_mounted_read_only_and_never_made_up(service: dict[str, Any]) -> None:
    binds = [mount for mount in service["volumes"] if isinstance(mount, dict)]
    assert all(mount["read_only"] is True for mount in binds)
    assert all(mount["bind"] == {"create_host_path": False} for mount in binds)
    named = [mount.partition(":")[0] for mount in service["volumes"] if isinstance(mount, str)]
    assert len(named) == 1
    assert named[0] in COMPOSE["volumes"]


def test_the_password_has_no_default() -> None:
    given = [
        value
        for service in SERVICES.values()
        for key, value in service.get("environment", {}).items()
        if "PASSWORD" in key
    ]
    assert len(given) == 2
    assert all(value.startswith("${POSTGRES_PASSWORD:?") for value in given)
    assert "PASSWORD" not in SERVICES["coordinator"]["environment"]["HEADWATER_DATABASE"]
    assert "POSTGRES_PASSWORD=\n" in (ROOT / "docker" / ".env.example").read_text()
    assert "docker/.env" in (ROOT / ".gitignore").read_text().splitlines()


def test_the_coordinator_waits_for_a_healthy_database() -> None:
    assert SERVICES["coordinator"]["depends_on"] == {"database": {"condition": "service_healthy"}}
    assert "pg_isready" in SERVICES["database"]["healthcheck"]["test"]
