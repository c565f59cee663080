"""Every command of the README works as printed; what takes minutes is made small by options."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from action_clips import labelled
from pictures_on_disk import class_folders, small_clip
from PIL import Image
from processes import free_port

from data_prep.moving_shapes import generate
from videoclip.checkpoints.named import ARCHITECTURES
from videoclip.manifest import write_manifest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
SMALL = [
    "--pretrain.epochs", "1", "--finetune.epochs", "1", "--model.visual.layers", "1",
    "--model.text.layers", "1",
]  # fmt: skip


def blocks(language: str, file: str = "README.md") -> list[str]:
    text = (ROOT / file).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder as the README's reader has it: videos of their own, and a run on moving shapes."""
    folder = tmp_path_factory.mktemp("reader")
    small = generate(
        folder / "own", clips_per_caption=1, images=40, shapes=["square"], colors=["red", "blue"]
    )
    rows = [json.loads(line) for line in small.read_text().splitlines()]
    for row in rows:
        row["path"] = f"own/{row['path']}"
        del row["split"], row["group"]
    (folder / "my_videos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(command: str, place: Path, *more: str) -> str:
    """Runs a printed command in the reader's folder, with `videoclip` and `scripts/` at hand."""
    words = shlex.split(command)
    if words[0] in ("videoclip", "scripts/videoclip"):
        words = [sys.executable, "-m", "videoclip", *words[1:]]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(
        [*words, *more], cwd=place, env=environment, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def test_the_commands_in_their_order(place: Path) -> None:
    first, check, own, evaluate, *_ = [block.strip() for block in blocks("bash")]
    data = ["--data", "my_videos.jsonl", "--output", "runs/moving_shapes", "--seeds", "0"]
    assert "| tight" in run(first, place, *data, *SMALL)
    assert (place / "runs/moving_shapes/index.html").exists()
    assert check == "scripts/check.sh"  # this very run is what it starts
    assert "| shift+transformer" in run(own, place, *SMALL)
    [again] = re.findall(r"`(videoclip compare runs/my_videos/run.json[^`]*)`", README)
    assert "| shift+transformer" in run(again, place)
    cell = next((place / "runs/moving_shapes/cells").glob("mean-*")).name
    assert "text to video" in run(evaluate.replace("CELL", cell), place)
    program, _ = blocks("python")
    run_python(program.replace("CELL", cell), place)
    assert (place / "my_model/model.safetensors").exists()


@pytest.fixture(scope="module")
def actions(tmp_path_factory) -> Path:
    """A folder with labelled clips in all splits, one clip more, and a small model."""
    folder = tmp_path_factory.mktemp("actions")
    clips = [
        clip._replace(captions=(f"somebody does {clip.label}, take {number}",))
        for split in ("train", "val", "test")
        for number, clip in enumerate(labelled(folder / split, count=6, split=split))
    ]
    clips = [clip._replace(video_id=f"{clip.split}-{clip.video_id}") for clip in clips]
    for name in ("actions", "msrvtt-9k", "kinetics400"):
        write_manifest(folder / f"{name}.jsonl", clips)
    shutil.copy(clips[0].path, folder / "clip.mp4")
    small_clip().save_pretrained(folder / "small")
    return folder


def test_actions_on_the_front_page(actions: Path) -> None:
    compare, classify, evaluate = blocks("bash")[4].replace("ViT-B/32", "small").splitlines()
    data = ["--data", "actions.jsonl", "--seeds", "0", "--modules", "mean,shift"]
    assert "| shift" in run(compare, actions, *data, *SMALL)
    assert "playing the piano" in run(classify, actions)
    assert "expected 6 = scored 6 + 0 bad" in run(evaluate, actions)


def test_recipes_on_the_front_page(actions: Path) -> None:
    retrieval, recognition, spread = blocks("bash")[5].replace("ViT-B/32", "small").splitlines()
    short = ["--finetune.epochs", "1", "--data.frames", "2", "--finetune.batch-size", "3"]
    printed = run(retrieval, actions, *short, "--task.protocol", "None")
    assert "| transformer" in printed
    [model] = re.findall(r"The model, for videoclip.load: (.*)", printed)
    assert (actions / model / "model.safetensors").is_file()
    launch = f"{sys.executable} -m torch.distributed.run --standalone"
    printed = run(recognition.replace("torchrun", launch), actions, *short)
    assert "top-1" in printed
    launch = f"{sys.executable} -m deepspeed.launcher.runner --master_port {free_port()}"
    assert spread.startswith("deepspeed ")
    spread = spread.replace("deepspeed", launch, 1)
    own = ["--data", "actions.jsonl", "--finetune.epochs", "1", "--pretrain.epochs", "1"]
    assert "| lstm" in run(spread, actions, *own)


def test_many_videos_on_the_front_page(actions: Path) -> None:
    pack, compare, embed = blocks("bash")[6].replace("ViT-B/32", "small").splitlines()
    assert "18 packed + 0 bad" in run(pack, actions)
    short = ["--finetune.epochs", "1", "--data.frames", "2", "--task.protocol", "None"]
    assert "| transformer" in run(compare, actions, *short, "--seeds", "0")
    run(embed, actions, "--frames", "2")
    assert len(pd.read_parquet(actions / "features/embeddings.parquet")) == 18


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A folder as the reader of the pages on pictures has it: some pictures, and a small model."""
    folder = tmp_path_factory.mktemp("pictures")
    numbers = np.random.default_rng(0)
    for label in ("cat", "dog", "rose", "bus", "clock", "pizza"):
        Image.fromarray(numbers.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(
            folder / f"{label}.jpg"
        )
    for split in ("train", "test"):
        class_folders(folder / "pictures" / split, 6, seed=len(split))
    rows = "".join(f"{label}.jpg,a photo of a {label}\n" for label in ("cat", "dog", "rose"))
    (folder / "pairs.csv").write_text("filepath,caption\n" + rows)
    small_clip().save_pretrained(folder / "small")
    return folder


TINY = ["--epochs", "1", "--model.visual.layers", "1", "--model.text.layers", "1"]


def test_pictures_on_the_front_page(pictures: Path) -> None:
    _, tutorial = blocks("python")
    printed = run_python(tutorial.replace("ViT-B/32", "small"), pictures)
    shares = [float(line.split()[1].strip("%")) for line in printed.splitlines()]
    assert len(shares) == 5
    assert shares == sorted(shares, reverse=True)
    classify, evaluate, pretrain = blocks("bash")[-1].replace("ViT-B/32", "small").splitlines()
    assert "red bus" in run(classify, pictures)
    assert "calibration error" in run(evaluate, pictures)
    assert "| zero-shot" in run(pretrain, pictures, *TINY)
    assert (pictures / "runs/digits/few-shot/few_shot.png").exists()


def test_the_page_on_pictures(pictures: Path) -> None:
    for block in blocks("bash", "docs/pictures.md"):
        for command in block.splitlines():
            if command == "videoclip pretrain digits":
                continue  # the front page has it
            small = TINY if "pretrain" in command else []
            if "pretrain" in command:
                command = f"{command} --model.visual.width 64 --model.text.width 64"
            assert run(
                command.replace(" ViT-B/32", " small") if not small else command, pictures, *small
            )
    [program] = blocks("python", "docs/pictures.md")
    assert "tensor([[" in run_python(program.replace("ViT-B/32", "small"), pictures)


def test_the_page_on_checkpoints(pictures: Path) -> None:
    from foreign import open_clip_model, transformers_config, write_archive
    from foreign_video import TSM, ActionCLIP, CLIP4Clip, ready
    from transformers import CLIPModel

    from videoclip.heads import Transformer

    write_archive(open_clip_model(), pictures / "ViT-B-32.pt")
    CLIPModel(transformers_config()).save_pretrained(pictures / "clip_folder")
    weights = open_clip_model("vit", "gelu").state_dict()
    torch.save({"epoch": 32, "state_dict": weights}, pictures / "epoch_32.pt")
    torch.save(ready(CLIP4Clip("seqTransf")).state_dict(), pictures / "pytorch_model.bin.4")
    torch.save(ready(ActionCLIP("Transf", 4)).checkpoint(), pictures / "model_best.pt")
    torch.save(ready(TSM(8, classes=3)).checkpoint(), pictures / "tsm.pth")
    (pictures / "classes.txt").write_text("juggling\nbowling\nskiing\n")
    small_clip().save_pretrained(pictures / "my_retrieval")
    small_clip(head=Transformer(layers=1)).save_pretrained(pictures / "my_transformer")
    [program] = blocks("python", "docs/checkpoints.md")
    for elsewhere in ("ViT-B/32", "openai/clip-vit-base-patch32"):
        program = program.replace(elsewhere, "small")
    run_python(program, pictures)
    assert (pictures / "mine" / "model.safetensors").exists()
    [commands] = blocks("bash", "docs/checkpoints.md")
    for command in commands.splitlines():
        assert "opens it" in run(command, pictures)


def test_the_table_of_openais_models() -> None:
    rows = re.findall(
        r"^\| (\S+) \| ([\d,]+) \| (\d+) \| (\d+) \|$",
        (ROOT / "docs/checkpoints.md").read_text(),
        re.MULTILINE,
    )
    expected = []
    for name, model in ARCHITECTURES.items():
        with torch.device("meta"):
            parameters = sum(p.numel() for p in model.build().clip.parameters())
        size = model.visual.image_size
        expected.append((name, f"{parameters:,}", str(size), str(model.embedding)))
    assert rows == expected


def run_python(program: str, place: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=place,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def test_help_is_worth_reading_and_quick() -> None:
    text = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "videoclip", "--help"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "compare" in text.stdout
    assert "torch" not in text.stderr, "--help must not wait for torch"


def test_the_manifest_line_is_read(tmp_path: Path) -> None:
    from videoclip.manifest import read_manifest

    [line] = blocks("json")
    (tmp_path / "clips.jsonl").write_text(line)
    [clip] = read_manifest(tmp_path / "clips.jsonl")
    assert (clip.video_id, clip.split) == ("cat1", "train")


def test_the_module_of_the_guide_passes_the_common_suite(tmp_path: Path) -> None:
    for folder in ("videoclip", "tests", "experiments", "data_prep"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    module, line = blocks("python", "docs/adding_a_module.md")
    (tmp_path / "videoclip/heads/maximum.py").write_text(module)
    with (tmp_path / "videoclip/heads/__init__.py").open("a") as file:
        file.write(line)
    answer = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/test_slots.py", "-k", "maximum"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stdout
    assert " passed" in answer.stdout


def test_every_file_that_is_linked_is_there() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
