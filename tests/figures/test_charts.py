"""What the pictures of a classification choose to show."""

import numpy as np
from PIL import Image

from videoclip.figures.charts import SHOWN, _most_confused, calibration_chart, confusion_chart
from videoclip.figures.classification import classification


def test_of_many_classes_both_sides_of_the_largest_confusions_are_shown() -> None:
    share = np.full((100, 100), 0.1)
    planted = [(place, 99 - place) for place in range(SHOWN // 2)]
    for own, other in planted:
        share[own, other] = 30 + own
    assert _most_confused(share).tolist() == sorted(place for pair in planted for place in pair)
    assert len(_most_confused(np.diag(np.full(100, 100.0)))) == SHOWN  # nothing is confused


def test_pictures_are_drawn_for_few_and_for_many_classes(tmp_path) -> None:
    for count in (2, 100):
        scores = np.eye(count)[np.roll(np.arange(count), 1)]
        result = classification(scores, np.arange(count), [f"a ${i} | $" for i in range(count)])
        confusion_chart(result, tmp_path / f"{count}.png")
        calibration_chart(result, tmp_path / "calibration.png")
    widths = []
    for count in (2, 100):
        with Image.open(tmp_path / f"{count}.png") as picture:
            widths.append(picture.width)
    assert widths[0] < widths[1] < 3000
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "100.png", "2.png", "calibration.png",
    ]  # fmt: skip
