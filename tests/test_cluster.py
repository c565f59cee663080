"""Work on a Ray cluster of two nodes gives what one machine gives, also when a node dies."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clips as files
import pandas as pd
import pytest
import torch
from action_clips import ACTIONS, action
from models import build
from safetensors.torch import load_file

from videoclip.__main__ import main
from videoclip.cluster import DIED
from videoclip.manifest import Clip, write_manifest
from videoclip.towers import Text

CLIPS, BAD = 40, (3, 17)
NODE = {"num_cpus": 2, "object_store_memory": 80_000_000}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A node of this machine; tests add a second one, with processes of its own."""
    ray = pytest.importorskip("ray", reason="the extra videoclip[ray] is not installed")
    from ray.cluster_utils import Cluster

    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    os.environ["OMP_NUM_THREADS"] = "1"
    head = NODE | {"include_dashboard": False}
    head["_system_config"] = {"memory_monitor_refresh_ms": 0}  # which ends who is not to blame
    started = Cluster(initialize_head=True, head_node_args=head)
    yield started
    ray.shutdown()
    started.shutdown()


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Clips, two of which are damaged, and a model."""
    folder, clips = tmp_path_factory.mktemp("world"), []
    for number in range(CLIPS):
        pixels = action(ACTIONS[number % 3], number, 8 + number % 5)
        path = files.write_video(folder / f"{number}.mp4", pixels)
        clips.append(Clip(f"clip{number}", path, (f"clip {number}",)))
    for number in BAD:
        files.cut(clips[number].path, 0.3)
    write_manifest(folder / "clips.jsonl", clips)
    build(text=Text(width=32, layers=1, context_length=16)).save_pretrained(folder / "model")
    return folder


def run(*words: object, **options: Any) -> subprocess.Popen:
    """A process of its own: Ray raises warnings, which are errors here."""
    command = [sys.executable, *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def features(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for shard in folder.glob("clips-*/*.safetensors"):
        found |= load_file(shard)
    return found


def killed_midway(cluster: Any, *command: object) -> bytes:
    """Runs a command on the cluster, one of whose nodes is killed meanwhile; what is printed."""
    second = cluster.add_node(**NODE)
    job = run("-m", "videoclip", *command, "--ray", cluster.address)
    said = b""
    while not re.search(rb"[1-9]\d*/40 ", said) and job.poll() is None:
        said += os.read(job.stderr.fileno(), 4096)
    cluster.remove_node(second, allow_graceful=False)
    assert b"40/40" not in said  # it was not done yet
    printed, more = job.communicate()
    assert job.returncode == 0, (said + more).decode()
    return printed


def test_a_node_dies_and_no_feature_is_lost(cluster: Any, world: Path, tmp_path: Path) -> None:
    command = ["embed", str(world / "clips.jsonl"), "--model", str(world / "model")]
    command += ["--frames", "4", "--output"]
    assert main([*command, str(tmp_path / "one")]) == 0
    printed = killed_midway(cluster, *command, tmp_path / "ray")
    assert b"38 embedded + 2 bad = 40" in printed
    one, ray = features(tmp_path / "one"), features(tmp_path / "ray")
    assert len(one) == CLIPS - len(BAD)
    assert one.keys() == ray.keys()
    assert all(torch.equal(one[key], ray[key]) for key in one)
    tables = [pd.read_parquet(tmp_path / name / "embeddings.parquet") for name in ("one", "ray")]
    pd.testing.assert_frame_equal(*tables)


def test_a_node_dies_and_no_frame_is_lost(cluster: Any, world: Path, tmp_path: Path) -> None:
    command = ["data", "pack", str(world / "clips.jsonl"), "--short-side", "24", "--output"]
    assert main([*command, str(tmp_path / "one")]) == 0
    printed = killed_midway(cluster, *command, tmp_path / "ray")
    assert b"38 packed + 2 bad = 40" in printed
    one, ray = (files_of(tmp_path / name) for name in ("one", "ray"))
    assert {path.suffix for path in one} >= {".tar", ".jsonl"}
    assert one == ray


def files_of(store: Path) -> dict[Path, bytes]:
    """What a store holds, without the journal, which tells times, and with its own paths."""
    return {
        path.relative_to(store): path.read_bytes().replace(str(store).encode(), b"")
        for path in store.rglob("*")
        if path.is_file() and "journal" not in path.name
    }


CRASH = """
import os, sys
from videoclip import cluster
from videoclip.cluster import Stage, joined, spread
cluster.TRIES = 1  # every process has to be started

def work(item):
    if item == 2:
        os._exit(1)  # as a decoder that crashes
    return item + 1

with joined(sys.argv[1]):
    items = {str(number): number for number in range(5)}
    print(sorted(spread(items, [Stage(work)], "x", unit="x")))
"""


def test_an_item_that_ends_its_process_is_told_and_costs_no_other(cluster: Any) -> None:
    job = run("-c", CRASH, cluster.address)
    printed, more = job.communicate()
    expected = [("0", 1), ("1", 2), ("2", DIED), ("3", 4), ("4", 5)]
    # Ray says on other lines that processes died.
    assert str(expected) in printed.decode().splitlines(), more.decode()


def test_no_cluster_and_no_ray_are_one_clear_message(world, tmp_path, capsys, monkeypatch) -> None:
    command = ["embed", str(world / "clips.jsonl"), "--model", str(world / "model"), "--output"]
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main([*command, str(tmp_path / "out"), "--ray", "local"]) == 1
    assert "pip install 'videoclip[ray]'" in capsys.readouterr().err
