"""``import aperion`` loads what the core needs and nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest

OPTIONAL = [
    "aperion.audit.log",
    "pydantic.networks",
    "difflib",
    "difflib",
    "pydantic.networks",
    "opentelemetry.sdk",
    "typer",
    "rich",
    "starlette",
    "fastapi",
    "prometheus_client",
    "watchfiles",
    "uvicorn",
    "cryptography",
    "pytest",
    "hypothesis",
    "uvloop",
    "httpx",
]


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    code = "import aperion, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=45)
    return set(done.stdout.split())


@pytest.mark.parametrize("name", OPTIONAL)
def test_importing_aperion_does_not_load(name: str, loaded: set[str]) -> None:
    assert "aperion.bus" in loaded
    assert name not in loaded


@pytest.mark.parametrize("name", ["aperion.AuditLog", "aperion.audit.Rotation", "aperion.audit.verify"])
def test_what_is_loaded_late_is_there_after_importing_aperion_alone(name: str) -> None:
    code = f"import aperion; {name}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=45)
    assert (done.returncode, done.stderr) == (0, "")
