"""What a run was made with: versions, the state of the source code, and what it shall be again."""

import json
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchvision", "transformers", "decord", "av", "numpy", "scipy")
"""Whose versions are stored with a run."""


def environment() -> dict[str, str]:
    """Versions and the state of the source code."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    found |= {package: version(package) for package in PACKAGES}
    source = Path(__file__).resolve().parent
    for key, arguments in (
        ("git commit", ("rev-parse", "HEAD")),
        ("git changes", ("status", "--porcelain", "--", ".")),
    ):
        answer = subprocess.run(
            ["git", *arguments], cwd=source, capture_output=True, text=True, check=False
        )
        found[key] = answer.stdout.strip() or "none" if not answer.returncode else "unknown"
    return found


def differences(there: Any, here: Any, where: str = "") -> list[str]:
    """What a record says otherwise than now, a line for each setting; both become JSON first."""
    if not where:
        there, here = (json.loads(json.dumps(value)) for value in (there, here))
    if isinstance(there, dict) and isinstance(here, dict):
        return [
            line
            for key in there | here
            for line in differences(there.get(key), here.get(key), f"{where}.{key}")
        ]
    if there == here:
        return []
    name = where.removeprefix(".").removeprefix("settings.")
    return [f"  {name}: {there!r} there, {here!r} now"]
