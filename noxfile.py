"""The checks as sessions: ``nox -s tests``. Interpreters that are missing are skipped."""

from __future__ import annotations

from pathlib import Path

import nox

nox.options.error_on_missing_interpreters = False
nox.options.default_venv_backend = "venv"
nox.options.sessions = ["lint", "types", "tests", "examples"]

PYTHONS = nox.project.python_versions(nox.project.load_toml("pyproject.toml"))


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format."""
    session.install("ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types; the tests check those of users with mypy and pyright."""
    session.install("-e", ".[dev]")
    session.run("mypy")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run all tests, the slow ones too, and doctests on every version that is there."""
    session.install("-e", ".[dev]")
    session.run("python", "-m", "pytest", "-n", "2", "-m", "", *session.posargs)
    session.run("python", "-m", "pytest", "--doctest-modules", "aperion")


@nox.session
def examples(session: nox.Session) -> None:
    """Run the numbered examples."""
    session.install("-e", ".[dev]")
    session.run("python", "-m", "pytest", "tests/core/test_examples.py")


@nox.session
def coverage(session: nox.Session) -> None:
    """Measure what the tests cover."""
    session.install("-e", ".[dev]")
    session.run("coverage", "run", "-m", "pytest", "-m", "")
    session.run("coverage", "report")


@nox.session
def bench(session: nox.Session) -> None:
    """Measure Aperion and its peers."""
    session.install("-e", ".[bench]")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site into build/site; a link that leads nowhere is an error."""
    session.install("-e", ".[docs]")
    session.run("zensical", "build", "--strict", "--clean")


@nox.session
def audit(session: nox.Session) -> None:
    """Look for known vulnerabilities in what the package needs, and write an SBOM; both in build/."""
    session.install("cyclonedx-bom", "pip-audit")
    alone = Path(session.create_tmp(), "package")  # apart from the tools, which are no part of the package
    session.run("python", "-m", "venv", "--clear", "--without-pip", str(alone))
    pip = ("python", "-m", "pip", "--python", str(alone / "bin" / "python"))
    session.run(*pip, "install", "--quiet", ".[all]")
    build = Path("build")
    build.mkdir(exist_ok=True)
    sbom = ("--pyproject", "pyproject.toml", "--output-file", str(build / "sbom.cdx.json"))
    session.run("cyclonedx-py", "environment", *sbom, str(alone / "bin" / "python"))
    frozen = session.run(*pip, "freeze", "--exclude", "aperion-bus", silent=True, stderr=None)
    (build / "requirements.txt").write_text(str(frozen), encoding="utf-8")
    # --strict: without it, a package that could not be looked up would count as one without problems.
    session.run("pip-audit", "--strict", "--no-deps", "--disable-pip", "-r", str(build / "requirements.txt"))


@nox.session
def build(session: nox.Session) -> None:
    """Build the wheel and the source distribution."""
    session.install("build")
    session.run("python", "-m", "build")
