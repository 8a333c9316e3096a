#!/usr/bin/env -S uv run --script
# /// script
# dependencies = ["nox"]
# ///
"""The tests and checks in environments of their own, on every Python that is installed: `nox`."""

from __future__ import annotations

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"


@nox.session(python=["3.11", "3.12", "3.13", "3.14", "3.15"])
def tests(session: nox.Session) -> None:
    """Run the tests."""
    session.install(".", *nox.project.dependency_groups(nox.project.load_toml("pyproject.toml"), "test", "demo"))
    session.run("pytest", *session.posargs)


if __name__ == "__main__":
    nox.main()
