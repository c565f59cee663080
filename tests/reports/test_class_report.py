"""What people read about a classification: tables, pages, and what a figure is worth."""

import json

import numpy as np
import pytest

from videoclip.figures.classification import Classification, classification
from videoclip.reports.class_report import markdown, metric_table, summary, worth, write


def classified(items: int, right: float, classes: int = 2) -> Classification:
    numbers = np.random.default_rng(0)
    labels = np.arange(items) % classes
    scores = np.zeros((items, classes))
    hit = numbers.random(items) < right
    scores[np.arange(items), np.where(hit, labels, (labels + 1) % classes)] = 1
    return classification(scores, labels, [f"class {number}" for number in range(classes)])


def test_a_figure_of_few_items_is_not_shown_to_be_better_than_guessing() -> None:
    for items, right, shown in ((20, 0.6, False), (400, 0.9, True)):
        result = classified(items, right)
        told = worth(result, result.intervals())
        assert f"{items} items: the 95 % interval of top-1 is" in told
        assert "guessing is right in 50.0 % of cases, always saying 'class 0' in 50.0 %" in told
        assert told.endswith("not shown to be better than that.") is not shown
    alone = classified(1, 1.0)
    assert "1 items have no interval" in worth(alone, alone.intervals())


def test_always_saying_the_most_frequent_class_must_be_beaten_too() -> None:
    labels = np.repeat([0, 1], [180, 20])
    result = classification(np.eye(2)[np.zeros(200, dtype=int)], labels, ["a", "b"])
    told = worth(result, result.intervals())
    assert "always saying 'a' in 90.0 %. Top-1 is not shown to be better than that." in told


def test_ties_that_matter_are_told() -> None:
    scores = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    tied = classification(scores, np.array([0, 1, 1, 0]), ["a", "b"])
    assert worth(tied, tied.intervals()).endswith(
        "1 items tie with another class: top-1 is 50.0 with every tie lost, 75.0 with every tie "
        "won, and the table has the mean."
    )
    assert tied.metrics()["top-1"] == 62.5


def test_tables_keep_their_columns_whatever_the_names_are() -> None:
    result = classified(40, 0.7)
    table = markdown(metric_table(result, {}).assign(metric="a | b")).splitlines()
    assert all(line.count("|") - line.count("\\|") == 4 for line in table)
    assert "expected 40 = scored 40 + 0 bad" in summary(result)


def test_the_page_escapes_what_comes_from_users(tmp_path) -> None:
    labels = np.array([0, 1, 1])
    scores = np.array([[1.0, 0.0], [0.0, 1.0], [np.nan, np.nan]])
    result = classification(scores, labels, ["<b>bold</b>", "$x_1$"])
    write(
        result, ["1", "2", "3"], {"3": "<script>"}, tmp_path,
        title="a & b", lines=["<i>"], groups=["g", "g", "h"], extra=1,
    )  # fmt: skip
    page = (tmp_path / "index.html").read_text()
    for hidden in ("<b>bold", "<script>", "<i>"):
        assert hidden not in page
    assert "&lt;b&gt;bold" in page
    assert "unreadable, counted as wrong: 3: &lt;script&gt;" in page
    record = json.loads((tmp_path / "evaluation.json").read_text())
    assert record["extra"] == 1
    assert record["groups"][0] == {"group": "g", "items": 2, "top-1": 100.0}
    assert record["metrics"]["top-1"] == pytest.approx(200 / 3)


def test_only_the_first_unreadable_items_are_named(tmp_path) -> None:
    result = classified(40, 0.7)
    names = [str(number) for number in range(40)]
    write(result, names, {f"bad {number}": "gone" for number in range(13)}, tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert page.count("counted as wrong") == 10
    assert "and 3 more, all in evaluation.json" in page
    assert len(json.loads((tmp_path / "evaluation.json").read_text())["unreadable"]) == 13
