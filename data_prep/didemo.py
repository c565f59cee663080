"""DiDeMo (Hendricks et al. 2017): a video of Flickr and the paragraph of all its descriptions.

Make it: videoclip data prepare didemo --annotations FOLDER --videos FOLDER
"""

from pathlib import Path, PurePosixPath

from data_prep.annotations import JsonFile, fault, read_lines
from data_prep.entries import Annotations, Dataset, Download, Entry, Expected, Part
from data_prep.videos import stem_of

COUNTS = {
    "train": Expected({8_395}, {8_395}),
    "val": Expected({1_065}, {1_065}),
    "test": Expected({1_004}, {1_004}),
}
SECONDS = 31.0
"""What was described: the first half minute, as CLIP4Clip cuts it."""


def read(annotations: Annotations) -> list[Part]:
    """The descriptions of every video, in their order, with or without CLIP4Clip's lists.

    Some videos are named twice, with two endings. With a list, only the descriptions of the name
    that it has count, as in CLIP4Clip; without one all descriptions of the video do.
    """
    entries = []
    for split, path in annotations.splits({s: (f"{s}_data.json",) for s in COUNTS}).items():
        described = _described(path)
        listed = annotations.find(f"{split}_list.txt")
        if listed is not None:
            described = _chosen(listed, described, annotations, split)
        videos: dict[str, list[str]] = {}
        names: dict[str, list[str]] = {}
        for name, descriptions in described.items():
            videos.setdefault(stem_of(name), []).extend(descriptions)
            names.setdefault(stem_of(name), []).append(name)
        for video, descriptions in videos.items():
            text = (" ".join(descriptions),)
            entries.append(Entry(video, (*names[video], video), split, text, end=SECONDS))
        if len(described) > len(videos):
            annotations.note(
                f"{split}: {len(described) - len(videos)} videos are named with two endings; all "
                f"descriptions of a video are joined (with {split}_list.txt: those of the name "
                "that it has, as in CLIP4Clip)"
            )
    return [Part("", entries, COUNTS)]


def _described(path: Path) -> dict[str, list[str]]:
    file = JsonFile(path)
    found: dict[str, list[str]] = {}
    for item in file.items():
        name = PurePosixPath(file.text_of(item, "video")).name
        found.setdefault(name, []).append(file.text_of(item, "description"))
    return found


def _chosen(
    listed: Path, described: dict[str, list[str]], annotations: Annotations, split: str
) -> dict[str, list[str]]:
    """The videos of a list, under the names that it has."""
    by_stem = {stem_of(name): name for name in described}
    chosen: dict[str, list[str]] = {}
    for line in read_lines(listed):
        name = line.cells[0]
        # A list may name a video that was made into another format since.
        known = name if name in described else by_stem.get(stem_of(name))
        if known is None:
            raise fault(listed, line.number, f"{name} has no description in {split}_data.json")
        chosen[name] = described[known]
    left = sum(map(len, described.values())) - sum(map(len, chosen.values()))
    if left:
        annotations.note(f"{split}: {left} descriptions of names that {listed.name} has not")
    return chosen


REPOSITORY = "https://raw.githubusercontent.com/LisaAnne/LocalizingMoments/master/data"
DATA_SETS = (
    Dataset(
        name="didemo",
        title="DiDeMo, 1,004 test videos with a paragraph each",
        license="BSD 2-clause for the annotations; the videos have Creative Commons licenses",
        page="https://github.com/LisaAnne/LocalizingMoments",
        files="{train,val,test}_data.json; {train,val,test}_list.txt if there",
        read=read,
        downloads=(
            Download(
                f"{REPOSITORY}/val_data.json", "val_data.json", 1_111_448,
                "b0364cc256553332feb19d46bcc4cd2b09774949fe6c0b25e7ed0ff3c6aefebb",
            ),
            Download(
                f"{REPOSITORY}/test_data.json", "test_data.json", 1_068_934,
                "1891c04ec48b3d364c739594b2b6413806b74bd9027c092d896e7ebb930ff1cd",
            ),
        ),
    ),
)  # fmt: skip
