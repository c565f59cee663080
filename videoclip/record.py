"""What a run was made with: versions, and the state of the source code."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

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
