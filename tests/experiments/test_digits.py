"""The recipe that tells the CLIP story: on digits, and on pictures of a user."""

import json
from pathlib import Path

from pictures_on_disk import class_folders

from videoclip.__main__ import main


def told(folder: Path) -> dict[str, float]:
    """Zero-shot, few-shot and probe as the run folder holds them."""
    assert (folder / "few-shot" / "few_shot.png").is_file()
    found = json.loads((folder / "few-shot" / "evaluation.json").read_text())
    assert set(found["few-shot"]) == {"1", "2", "4", "8", "16"}
    return found


def test_digits_are_learned_from_captions(tmp_path: Path, capsys) -> None:
    """A quarter of the recipe's epochs is enough to be far from the tenth that guessing gets."""
    output = tmp_path / "run"
    assert main(["pretrain", "digits", "--output", str(output), "--epochs", "10"]) == 0
    printed = capsys.readouterr().out
    assert "| zero-shot" in printed
    assert "found 1426 = trained 1426 + bad 0" in printed
    found = told(output)
    results = json.loads((output / "results.json").read_text())
    assert found["zero-shot"] == results["zero_shot"]["top-1"] > 50
    assert found["all"] > 50


def test_the_same_on_pictures_of_a_user(tmp_path: Path) -> None:
    class_folders(tmp_path / "colors", 40)
    output = tmp_path / "run"
    arguments = ["pretrain", "digits", "--pictures", str(tmp_path / "colors")]
    small = ["--epochs", "4", "--batch-size", "16", "--model.visual.layers", "1"]
    assert main([*arguments, "--output", str(output), *small]) == 0
    assert told(output)["zero-shot"] > 60
    captions = (output / "data-colors" / "pairs.csv").read_text()
    assert "a photo of a red." in captions


def test_other_pictures_are_another_run(tmp_path: Path, capsys) -> None:
    class_folders(tmp_path / "colors", 40)
    output = ["--output", str(tmp_path / "run")]
    small = ["--epochs", "1", "--model.visual.layers", "1", "--model.text.layers", "1"]
    arguments = ["pretrain", "digits", *output, *small]
    assert main(arguments) == 0
    assert main([*arguments, "--pictures", str(tmp_path / "colors")]) == 1
    assert "holds a run with other settings" in capsys.readouterr().err
    assert main([*arguments, "--pictures", str(tmp_path / "nowhere")]) == 1
    assert "nowhere holds no pictures in class folders" in capsys.readouterr().err
