"""Pre-training end to end: counts add up, a kill costs nothing, what comes out is a model."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pictures_on_disk import class_folders, small_clip
from tensorboard_events import events

import videoclip
from videoclip.config import ConfigError, from_json
from videoclip.errors import VideoclipError
from videoclip.experiment import ImageText, Optim, Pretraining, Run
from videoclip.image_text.images import image_set
from videoclip.image_text.pretrain import BAD, MODEL, RESULTS, RUN, Watched, pretrain, start
from videoclip.image_text.shards import write_shards
from videoclip.model import Model
from videoclip.scorers import Tight
from videoclip.towers import ResNet, Text, ViT
from videoclip.training.logbook import read_metrics
from videoclip.training.states import STATES

ROOT = Path(__file__).resolve().parents[2]
SMALL = Model(
    visual=ViT(width=64, layers=1, patch_size=8, image_size=16),
    text=Text(width=32, layers=1, context_length=12),
    embedding=32,
)
OPTIM = Optim(epochs=3, batch_size=4, tower_rate=1e-3, module_rate=1e-3, precision="fp32")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Twelve pictures in class folders, and pairs.csv with a caption for each."""
    folder = class_folders(tmp_path_factory.mktemp("pictures") / "colors")
    rows = [(p, f"a picture of {p.parent.name}") for p in sorted(folder.glob("*/*.png"))]
    with (folder / "pairs.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["filepath", "caption"])
        table.writerows((path.relative_to(folder), text) for path, text in rows)
    return folder


def settings(
    source: Path, model: Model = SMALL, workers: int = 0, save: float = 10.0, **optim: object
) -> Pretraining:
    data = ImageText(source=str(source), crop=0.8, workers=workers)
    run = Run(save_minutes=save, log_every=1)
    return Pretraining(model=model, data=data, optim=replace(OPTIM, **optim), run=run)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return videoclip.load(folder / MODEL).state_dict()


def assert_identical(found: Path, expected: Path) -> None:
    mine, theirs = weights(found), weights(expected)
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(mine[name], value), name


def test_a_run_from_pairs_to_a_model(pictures: Path, tmp_path: Path) -> None:
    watched = Watched(image_set(str(pictures)))
    results = pretrain(settings(pictures / "pairs.csv"), tmp_path, watched=watched)
    assert results["counts"] == {"found": 12, "trained": 12, "bad": 0}
    assert (results["epochs"], results["steps"]) == (3, 9)
    assert results == json.loads((tmp_path / RESULTS).read_text())
    model = videoclip.load(tmp_path / MODEL)
    assert watched.metrics(model) == results["zero_shot"]
    assert model.similarity(model.tokenize(["red"]), torch.rand(1, 1, 3, 16, 16)).isfinite().all()

    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == list(range(10))
    assert "zero_shot" in lines[0]
    keys = {"loss", "gradient_norm", "learning_rate", "logit_scale", "samples_per_second"}
    for line in lines[1:]:
        assert keys | {"waiting_for_data"} <= line.keys()
        assert 0 <= line["waiting_for_data"] <= 1
    last = [line for line in lines if "epoch_loss" in line]
    assert [line["step"] for line in last] == [3, 6, 9]
    mean = sum(line["loss"] for line in lines[7:]) / 3
    assert last[-1]["epoch_loss"] == pytest.approx(mean) == pytest.approx(results["loss"])
    assert last[-1]["zero_shot"] == results["zero_shot"]["top-1"]
    shown = events(tmp_path)
    for name in (*keys, "waiting_for_data", "zero_shot", "epoch_loss"):
        written = {line["step"]: line[name] for line in lines if name in line}
        assert shown[name] == pytest.approx(written, rel=1e-6), name
    assert (tmp_path / "curve.png").is_file()
    assert not (tmp_path / STATES).exists()


def test_a_finished_run_is_not_trained_again(pictures: Path, tmp_path: Path) -> None:
    given = settings(pictures / "pairs.csv", epochs=1)
    first = pretrain(given, tmp_path)
    before = (tmp_path / MODEL / "model.safetensors").stat().st_mtime_ns
    assert pretrain(given, tmp_path) == first
    assert (tmp_path / MODEL / "model.safetensors").stat().st_mtime_ns == before


def test_the_number_of_workers_changes_nothing(pictures: Path, tmp_path: Path) -> None:
    for workers in (0, 2):
        given = settings(pictures / "pairs.csv", workers=workers, epochs=2)
        pretrain(given, tmp_path / str(workers))
    assert_identical(tmp_path / "2", tmp_path / "0")


def test_bad_pairs_are_named_and_the_counts_add_up(pictures: Path, tmp_path: Path) -> None:
    """A truncated tar and a corrupt picture, from the command line."""
    samples = [
        (f"{path.parent.name}{path.stem}", path, f"a picture of {path.parent.name}")
        for path in sorted(pictures.glob("*/*.png"))
    ]
    broken = tmp_path / "broken.png"
    broken.write_bytes(samples[5][1].read_bytes()[:60])
    samples[5] = (samples[5][0], broken, samples[5][2])
    shards = write_shards(samples, tmp_path / "shards", per_shard=6)
    assert len(shards) == 2
    whole = shards[1].read_bytes()
    shards[1].write_bytes(whole[: whole.rindex(b"\x89PNG") + 99])  # in the last picture
    pattern = str(tmp_path / "shards" / "shards-{000..001}.tar")
    output = tmp_path / "run"
    answer = command(
        "--data", pattern, "--output", str(output), "--epochs", "2", "--batch-size", "3",
        *small_options(),
    )  # fmt: skip
    counts = json.loads((output / RESULTS).read_text())["counts"]
    assert counts["found"] == counts["trained"] + counts["bad"]
    bad = [json.loads(line) for line in (output / BAD).read_text().splitlines()]
    assert len(bad) == counts["bad"] >= 1
    assert all(line["reason"] for line in bad)
    assert any(samples[5][0] in line["name"] for line in bad)
    line = f"found {counts['found']} = trained {counts['trained']} + bad {counts['bad']}"
    assert line in answer
    assert str(output / BAD) in answer
    assert "cut off" in answer


def small_options() -> list[str]:
    return [
        "--model.visual.width", "64", "--model.visual.layers", "1", "--model.visual.patch-size",
        "8", "--model.visual.image-size", "16", "--model.text.width", "32", "--model.text.layers",
        "1", "--model.text.context-length", "12", "--model.embedding", "32", "--data.workers", "0",
    ]  # fmt: skip


def command(*arguments: str, status: int = 0) -> str:
    answer = subprocess.run(
        [sys.executable, "-m", "videoclip", "pretrain", *arguments],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert answer.returncode == status, answer.stdout + answer.stderr
    return answer.stdout if status == 0 else answer.stderr


def test_none_that_can_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    (tmp_path / "pairs.csv").write_text("filepath,caption\na.png,nothing\n")
    with pytest.raises(VideoclipError, match=r"none of the 1 pairs can be read; .*a\.png"):
        pretrain(settings(tmp_path / "pairs.csv"), tmp_path / "run")


# A run that is stopped goes on exactly where it was.

TIGHT = replace(SMALL, scorer=Tight(layers=1))
"""Its dropout draws from the state of the random numbers, in every step."""


@pytest.fixture(scope="module")
def straight(pictures: Path, tmp_path_factory) -> Path:
    """The run that nobody stops."""
    folder = tmp_path_factory.mktemp("straight")
    pretrain(settings(pictures / "pairs.csv", TIGHT, epochs=8), folder)
    return folder


def process(pictures: Path, folder: Path) -> subprocess.Popen:
    """The same run in a process of its own, which saves after every step."""
    program = (
        "from pathlib import Path; from test_pretrain import *\n"
        f"pairs = Path({str(pictures / 'pairs.csv')!r})\n"
        "given = settings(pairs, TIGHT, epochs=8, workers=1, save=0)\n"
        f"pretrain(given, Path({str(folder)!r}))"
    )
    here = [ROOT, ROOT / "tests", Path(__file__).parent]
    path = os.pathsep.join([*map(str, here), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_goes_on_to_the_bit(
    number: signal.Signals, pictures: Path, straight: Path, tmp_path: Path
) -> None:
    run = process(pictures, tmp_path)
    while run.poll() is None and len(read_metrics(tmp_path)) < 5:
        time.sleep(0.01)
    assert run.poll() is None, run.stdout.read()
    os.killpg(run.pid, number)  # the readers too, as Ctrl-C in a terminal does
    said, _ = run.communicate()
    assert run.returncode != 0
    assert not (tmp_path / RESULTS).exists()
    if number != signal.SIGKILL:
        assert "the same command goes on from there" in said
    steps = len(read_metrics(tmp_path))
    assert 5 <= steps < 24

    again = process(pictures, tmp_path)
    said, _ = again.communicate()
    assert again.returncode == 0, said
    assert "going on after step" in said
    assert_identical(tmp_path, straight)
    timeless = {"samples_per_second", "waiting_for_data", "memory"}
    for mine, theirs in zip(read_metrics(tmp_path), read_metrics(straight), strict=True):
        assert {k: v for k, v in mine.items() if k not in timeless} == {
            k: v for k, v in theirs.items() if k not in timeless
        }
    counts = json.loads((tmp_path / RESULTS).read_text())["counts"]
    assert counts == {"found": 12, "trained": 12, "bad": 0}


def test_bad_pairs_of_before_the_stop_are_not_forgotten(
    pictures: Path, tmp_path: Path, monkeypatch
) -> None:
    folder = tmp_path / "colors"
    folder.mkdir()
    (folder / "bad.png").write_bytes(b"no picture")
    lines = (pictures / "pairs.csv").read_text().splitlines()
    rows = [lines[0], "bad.png,nothing", *(f"{pictures}/{line}" for line in lines[1:])]
    (folder / "pairs.csv").write_text("\n".join(rows) + "\n")
    given = settings(folder / "pairs.csv", epochs=2)
    monkeypatch.setattr("videoclip.training.loop.Interruption", _AfterEpochs)
    with pytest.raises(KeyboardInterrupt):
        pretrain(given, tmp_path / "run")
    monkeypatch.undo()
    # It became readable: it stays named, since it was not trained on all the time.
    (folder / "bad.png").write_bytes((pictures / "red" / "0.png").read_bytes())
    results = pretrain(given, tmp_path / "run")
    assert results["counts"] == {"found": 13, "trained": 12, "bad": 1}
    assert "bad.png" in (tmp_path / "run" / BAD).read_text()


class _AfterEpochs:
    """Asks to stop at the end of the first epoch of four steps, which an evaluation precedes."""

    def __init__(self) -> None:
        self.looked = 0

    def __enter__(self) -> "_AfterEpochs":
        return self

    def __exit__(self, *error: object) -> None:
        return None

    @property
    def asked(self) -> int | None:
        self.looked += 1
        return signal.SIGINT if self.looked == 5 else None


def test_other_settings_in_the_same_folder_are_refused(pictures: Path, tmp_path: Path) -> None:
    pretrain(settings(pictures / "pairs.csv", epochs=1), tmp_path)
    with pytest.raises(VideoclipError, match=r"optim\.epochs: 1 there, 2 now"):
        pretrain(settings(pictures / "pairs.csv", epochs=2), tmp_path)
    other = tmp_path / "pairs.csv"
    lines = (pictures / "pairs.csv").read_text().splitlines()[:-1]
    other.write_text("\n".join([lines[0], *(f"{pictures}/{line}" for line in lines[1:])]))
    with pytest.raises(VideoclipError, match=r"pairs: '12 pairs, .*' there, '11 pairs"):
        pretrain(settings(other, epochs=1), tmp_path)


def test_run_json_holds_all_settings(pictures: Path, tmp_path: Path) -> None:
    given = settings(pictures / "pairs.csv", epochs=1)
    pretrain(given, tmp_path, command="videoclip pretrain")
    run = json.loads((tmp_path / RUN).read_text())
    assert from_json(Pretraining, run["settings"]) == given
    assert run["command"] == "videoclip pretrain"
    assert run["environment"]["torch"]


# Where a model starts.


def test_siglip_starts_as_in_its_paper(pictures: Path, tmp_path: Path) -> None:
    given = settings(pictures / "pairs.csv", loss="siglip")
    model = start(given, None)
    assert model.clip.logit_scale.exp().item() == pytest.approx(10.0)
    assert model.clip.logit_bias.item() == -10.0
    # A CLIP without a bias gets one; a bias that a checkpoint has is kept, with its temperature.
    small_clip().save_pretrained(tmp_path / "clip")
    model = start(given, str(tmp_path / "clip"))
    assert model.clip.logit_scale.exp().item() == pytest.approx(10.0)
    assert model.config.logit_bias == model.clip.logit_bias.item() == -10.0
    for name, value in small_clip().state_dict().items():
        if "logit" not in name:
            assert torch.equal(model.state_dict()[name], value)
    with_bias = small_clip(logit_bias=-3.0)
    with_bias.save_pretrained(tmp_path / "siglip")
    model = start(given, str(tmp_path / "siglip"))
    assert model.clip.logit_bias.item() == -3.0
    assert torch.equal(model.clip.logit_scale, with_bias.clip.logit_scale)
    results = pretrain(replace(given, optim=replace(given.optim, epochs=1)), tmp_path / "run")
    assert results["loss"] > 0


def test_lit_trains_the_text_tower_of_a_checkpoint(pictures: Path, tmp_path: Path) -> None:
    small_clip().save_pretrained(tmp_path / "clip")
    given = settings(
        pictures / "pairs.csv", lock="image", epochs=1, chunk_size=3, precision="bf16",
        checkpointing="blocks",
    )  # fmt: skip
    pretrain(given, tmp_path / "run", checkpoint=str(tmp_path / "clip"))
    before, after = small_clip().state_dict(), weights(tmp_path / "run")
    for name, value in before.items():
        if name.startswith("clip.visual."):
            assert torch.equal(after[name], value), name
    assert not torch.equal(after["clip.text_projection"], before["clip.text_projection"])


def test_a_resnet_is_trained_too(pictures: Path, tmp_path: Path) -> None:
    visual = ResNet(width=16, layers=(1, 1, 1, 1), image_size=32)
    given = settings(pictures / "pairs.csv", replace(SMALL, visual=visual), epochs=1, chunk_size=2)
    pretrain(given, tmp_path)
    found = weights(tmp_path)
    # Two chunks a step, three steps: once a chunk, not once for each of its two passes.
    assert found["clip.visual.bn1.num_batches_tracked"] == 6


# The command line.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is nothing to train on; use --data"),
        (["--data", "nowhere.csv"], "nowhere.csv does not exist"),
        (["digit"], "did you mean 'digits'"),
        (["moving_shapes"], "moving_shapes is a recipe of clips: videoclip compare"),
        (["--data", "a.csv", "--model", "ViT-B/33"], "did you mean 'ViT-B/32'"),
        (["--data", "a.csv", "--model", "RN50", "--checkpoint", "x"], "leave out --model"),
        (["--data", "a.csv", "--pictures", "x"], "--pictures is for a recipe"),
        (["--data", "a.csv", "--batch-size", "0"], "batch_size is 0"),
        (["nowhere/run.json"], "is not the run.json of a pre-training"),
    ],
)
def test_errors_are_one_clear_message(arguments: list[str], message: str, capsys) -> None:
    from videoclip.__main__ import main

    assert main(["pretrain", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_compare_refuses_a_recipe_of_pictures(capsys) -> None:
    from videoclip.__main__ import main

    assert main(["compare", "digits"]) == 1
    assert "digits is a recipe of pictures: videoclip pretrain digits" in capsys.readouterr().err


def test_run_json_repeats_a_run(pictures: Path, tmp_path: Path) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    command(
        "--data", str(pictures / "pairs.csv"), "--output", str(first), "--epochs", "1",
        "--batch-size", "4", "--seed", "3", *small_options(),
    )  # fmt: skip
    command(str(first / RUN), "--output", str(again))
    assert_identical(again, first)


def test_epochs_there_must_be(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="epochs is -1"):
        settings(pictures / "pairs.csv", epochs=-1)
    with pytest.raises(VideoclipError, match="at least one epoch"):
        pretrain(settings(pictures / "pairs.csv", epochs=0), tmp_path)
