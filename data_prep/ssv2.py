"""Something-Something v2 (Goyal et al. 2017): 174 actions with whatever objects are at hand.

The validation clips become the split `test`, since the official test labels are not public. The
official files also say which objects: `holding a potato next to a box` becomes the clip's caption.

Make it: videoclip data prepare ssv2 --annotations FOLDER --videos 20bn-something-something-v2
"""

from pathlib import Path

from data_prep.annotations import AnnotationError, JsonFile, fault, place
from data_prep.entries import Annotations, Dataset, Entry, Expected, Part
from data_prep.labels import read_labels, read_list

CLASSES = 174
COUNTS = {"train": Expected({168_913}), "test": Expected({24_777})}
OLD = "something-something-v2-"
FILES = {
    "train": ("train.json", f"{OLD}train.json", "train.txt", "sthv2_train_list_videos.txt"),
    "test": (
        "validation.json", f"{OLD}validation.json", "validation.txt", "val.txt",
        "sthv2_val_list_videos.txt",
    ),
}  # fmt: skip


def read(annotations: Annotations) -> list[Part]:
    """The official JSON files, or lists of `NUMBER.webm LABEL` with a file of class names."""
    found = annotations.splits(FILES)
    labels = annotations.label_file("labels.json", f"{OLD}labels.json", "sthv2_label_map.txt")
    names = read_labels(labels) if labels else None
    if names is not None and len(names) != CLASSES:
        raise AnnotationError(f"{labels} has {len(names)} classes, expected {CLASSES}")
    entries = []
    for split, path in found.items():
        if path.suffix == ".json":
            entries += _official(path, split, names)
        elif names is None:
            raise AnnotationError(
                f"{path} has numbers instead of classes; give their names: --labels "
                "sthv2_label_map.txt"
            )
        else:
            for line in read_list(path, CLASSES):
                clip = line.name.rsplit("/", 1)[-1].removesuffix(".webm")
                if not clip.isdecimal():
                    raise fault(path, line.line, f"{line.name!r}; expected a number and .webm")
                files, label = (line.name, clip), names[line.label]
                where = place(path, line.line)
                entries.append(Entry(clip, files, split, label=label, where=where))
    return [Part("", entries, COUNTS, CLASSES)]


def _official(path: Path, split: str, names: tuple[str, ...] | None) -> list[Entry]:
    file = JsonFile(path)
    entries, known = [], set(names or ())
    for item in file.items():
        clip, caption = file.text_of(item, "id"), file.text_of(item, "label")
        template = file.text_of(item, "template")
        action = template.replace("[", "").replace("]", "")
        if known and action not in known:
            raise file.fault(item.offset, f"the class {action!r} is not in the file of class names")
        entries.append(Entry(clip, (clip,), split, (caption,), label=action))
    return entries


DATA_SETS = (
    Dataset(
        name="ssv2",
        title="Something-Something v2, 174 actions",
        license="Qualcomm's data license agreement, research only",
        page="https://www.qualcomm.com/developer/software/something-something-v-2-dataset",
        files="train.json, validation.json and labels.json; or lists of NUMBER.webm LABEL such as "
        "validation.txt with --labels sthv2_label_map.txt",
        read=read,
    ),
)
