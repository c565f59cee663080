"""The verbs that classify pictures, as a user types them."""

import json
import math

import pandas as pd
import pytest
from models import build
from pictures_on_disk import class_folders, small_clip

from videoclip.__main__ import main


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a model and labelled pictures, one of them damaged."""
    small_clip().save_pretrained(tmp_path / "model")
    class_folders(tmp_path / "colors" / "train", 5)
    class_folders(tmp_path / "colors" / "test", 3, seed=1)
    (tmp_path / "colors" / "test" / "red" / "1.png").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_classify_prints_a_table_and_strict_json(place, capsys) -> None:
    pictures = ["colors/test/red/0.png", "colors/test/blue/0.png"]
    words = ["classify", *pictures, "--labels", "red", "a | b", "blue", "--model", "model"]
    assert main([*words, "--top", "2"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 6
    assert "colors/test/red/0.png" in table[2]
    assert main([*words, "--top", "3", "--template", "the {}."]) == 0
    table = capsys.readouterr().out.splitlines()
    assert any(r"| a \| b " in line for line in table)
    assert len({len(line) for line in table}) == 1
    assert main([*words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["image"] for row in rows] == pictures
    for row in rows:
        assert set(row["labels"]) == {"red", "a | b", "blue"}
        assert sum(row["labels"].values()) == pytest.approx(1)


def test_classify_with_a_siglip_model_says_what_fits_by_itself(place, capsys) -> None:
    small_clip(logit_bias=-3.0).save_pretrained("siglip")
    words = ["classify", *["colors/test/red/0.png"] * 2, "--labels", "red", "blue"]
    assert main([*words, "--model", "siglip", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first == second
    logits = [math.log(p / (1 - p)) for p in first["alone"].values()]
    both = list(first["labels"].values())
    assert logits[0] - logits[1] == pytest.approx(math.log(both[0] / both[1]), abs=1e-4)
    assert main([*words, "--model", "siglip"]) == 0
    table = capsys.readouterr().out
    assert "by itself" in table
    assert table.count("red/0.png") == 2


def test_what_classify_cannot_use_is_one_message(place, capsys) -> None:
    for words, message in {
        ("--top", "0"): "--top is 0; give at least 1",
        ("--labels-file", "none.txt"): "the labels cannot be read: none.txt",
        ("--templates", "nothing.txt"): "'nothing.txt' is neither a file nor a published set",
    }.items():
        command = ["classify", "colors/test/red/0.png", "--labels", "red", "--model", "model"]
        assert main([*command, *words]) == 1
        assert message in capsys.readouterr().err
    build().save_pretrained("foreign")
    command = ["classify", "colors/test/red/0.png", "--labels", "red", "--model", "foreign"]
    assert main(command) == 1
    assert "class names cannot be encoded" in capsys.readouterr().err


def test_classify_goes_on_after_a_bad_picture_and_says_so(place, capsys) -> None:
    words = ["classify", "colors/test/red/1.png", "colors/test/red/2.png", "none.png"]
    assert main([*words, "--labels", "red", "blue", "--model", "model", "--json"]) == 1
    out, err = capsys.readouterr()
    assert [row["image"] for row in json.loads(out)] == ["colors/test/red/2.png"]
    assert "colors/test/red/1.png is not a picture" in err
    assert "none.png does not exist" in err
    assert "2 of 3 pictures could not be read" in err


def test_classify_needs_labels_and_pictures(place, capsys) -> None:
    assert main(["classify", "x.png", "--model", "model"]) == 1
    assert "no labels are given" in capsys.readouterr().err
    (place / "labels.txt").write_text("red\n\nblue\nred\n")
    words = ["classify", "colors/test/red/0.png", "--labels-file", "labels.txt", "--json"]
    assert main([*words, "--model", "model"]) == 0
    assert len(json.loads(capsys.readouterr().out)[0]["labels"]) == 2
    assert main(["classify", "--labels", "red", "--model", "model"]) == 1
    assert "no picture is given" in capsys.readouterr().err


def test_evaluate_zero_shot(place, capsys) -> None:
    words = ["evaluate", "zero-shot", "model", "--data", "colors", "--output", "out"]
    assert main([*words, "--templates", "a photo of a {}.", "the {}."]) == 0
    out = capsys.readouterr().out
    assert "| top-1 " in out
    assert "expected 9 = scored 8 + 1 bad" in out
    assert "unreadable, counted as wrong: red/1.png" in out
    record = json.loads((place / "out" / "evaluation.json").read_text())
    assert record["templates"] == ["a photo of a {}.", "the {}."]
    low, top, high = (record["intervals"]["top-1"][i] for i in (1, 0, 2))
    assert low <= top == record["metrics"]["top-1"] <= high
    predictions = pd.read_parquet(place / "out" / "predictions.parquet")
    assert len(predictions) == 9
    right = predictions["label"] == predictions["predicted"]
    assert 100 * right.mean() == pytest.approx(top)
    assert predictions.loc[predictions["name"] == "red/1.png", "predicted"].isna().all()
    assert len(pd.read_csv(place / "out" / "per_class.csv")) == 3
    for name in ("confusion.png", "calibration.png"):
        assert (place / "out" / name).stat().st_size > 5000


def test_evaluate_zero_shot_on_one_picture_and_with_wrong_names(place, capsys) -> None:
    class_folders(place / "one", 1)
    for color in ("blue", "green"):
        (place / "one" / color / "0.png").unlink()
    words = ["evaluate", "zero-shot", "model", "--data", "one", "--output", "out"]
    assert main(words) == 0
    assert json.loads((place / "out/evaluation.json").read_text())["intervals"]["top-1"][1] is None
    assert "nan" not in capsys.readouterr().out
    for option, message in {
        ("--classes", "actionclip"): "the prompts 'actionclip' name no classes",
        ("--classes", "imagenet"): "1000 class names are given, one has 3 classes",
        ("--batch-size", "0"): "the batch size is 0",
    }.items():
        assert main([*words, *option]) == 1
        assert message in capsys.readouterr().err


def test_evaluate_probe_and_few_shot(place, capsys) -> None:
    assert main(["evaluate", "linear-probe", "model", "--data", "colors", "--output", "lp"]) == 0
    out = capsys.readouterr().out
    assert "C was chosen on 3 of the 15 training pictures" in out
    assert json.loads((place / "lp" / "evaluation.json").read_text())["C"] > 0
    words = ["evaluate", "few-shot", "model", "--data", "colors", "--output", "fs"]
    assert main([*words, "--shots", "1,2", "--seeds", "0,1"]) == 0
    out = capsys.readouterr().out
    rows = [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("|")]
    assert rows[2:] == ["zero-shot", "1", "2", "all"]
    assert (place / "fs" / "few_shot.png").stat().st_size > 5000
    assert "unreadable, counted as wrong: red/1.png" in out
    record = json.loads((place / "fs" / "evaluation.json").read_text())
    predictions = pd.read_parquet(place / "fs" / "predictions.parquet")
    assert len(predictions) == 9 * (1 + 2 * 2 + 1)
    for (shots, seed), part in predictions.groupby(["shots", "seed"]):
        right = 100 * (part["label"] == part["predicted"]).mean()
        assert right == pytest.approx(record["few-shot"][shots][seed])
    low, high = record["intervals"]["2"]
    assert low <= sum(record["few-shot"]["2"]) / 2 <= high
    assert main([*words, "--shots", "1,x"]) == 1
    assert "--shots takes numbers with commas" in capsys.readouterr().err


def test_evaluate_names_its_tasks(capsys) -> None:
    assert main(["evaluate"]) == 0
    out = capsys.readouterr().out
    assert all(task in out for task in ("retrieval", "zero-shot", "linear-probe", "few-shot"))
    assert main(["evaluate", "zeroshot", "model", "--data", "colors"]) == 1
    assert "no task is named 'zeroshot'; did you mean 'zero-shot'?" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["zero-shot", "linear-probe"])
def test_wrong_data_is_one_message(place, capsys, task) -> None:
    assert main(["evaluate", task, "model", "--data", "nowhere"]) == 1
    assert "nowhere is not a folder; give one with" in capsys.readouterr().err
