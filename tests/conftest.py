"""Shared fixtures: where the real material is, and which random state a test starts from."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a hub name must fail at once, not after retries
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the repository: real clips, annotations and golden tensors."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"the real material is not here: no folder {folder}")
    return folder


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
