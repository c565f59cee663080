"""`videoclip convert`: a model in any layout -> a file in the layout of another project."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro
from torch import Tensor

from videoclip.checkpoints.conversion import Target, Written, convert
from videoclip.checkpoints.origin import Precision
from videoclip.checkpoints.video_layouts import PROJECTS, TITLES, Variant
from videoclip.checkpoints.weights import load
from videoclip.errors import WeightsError
from videoclip.layers import Activation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Writes a model in the layout of another project, so that its code and ours read it.

    A file of that layout comes back as it was: the same keys, types and numbers. What a layout
    cannot express is an error that lists it.
    """

    source: tyro.conf.Positional[str]
    """What videoclip.load opens: a folder, a file, ViT-B/32, or a name on the Hugging Face hub."""
    target: tyro.conf.Positional[Path]
    """The file to write, such as pytorch_model.bin.0 or model_best.pt; a folder for videoclip and
    transformers. What is there is never written over."""
    layout: Target | None = None
    """clip4clip, actionclip, mmaction2, tsm: those projects' own. openai: the CLIP's state dict.
    transformers: a folder for CLIPModel. videoclip: a folder as save_pretrained writes it. Left
    out: the layout that the source came in."""
    variant: Variant | None = None
    """How files of the three video projects are read, here and later: reference (the default)
    computes what their code does, fixed is for models that were trained here without its faults."""
    precision: Precision = "file"
    """The type of the numbers. file: as they came, and float32 where a training changed them."""
    source_layout: str | None = None
    """Whose file the source is, where its keys do not tell."""
    source_head: str | None = None
    """The head in it by its project's name, such as seqTransf, where its keys do not tell."""
    source_frames: int | None = None
    """The frames it was trained with, where its keys do not tell; they travel with the model."""
    source_classes: Path | None = None
    """The names of a TSM file's classes in order: a text file, one a line, or a .csv with a column
    `name`; they travel with the model."""
    activation: Activation | None = None
    """Of a bare state dict, which does not tell."""


def main(arguments: Sequence[str]) -> None:
    """Reads the command line, converts, and says what was written and how it opens."""
    options = tyro.cli(
        Options, args=arguments, prog="videoclip convert", description=Options.__doc__
    )
    is_file = Path(options.source).is_file()
    model = load(
        options.source,
        activation=options.activation,
        layout=options.source_layout,
        variant=options.variant if is_file else None,
        head=options.source_head,
        frames=options.source_frames,
        classes=options.source_classes,
    )
    layout = options.layout or (model.origin and model.origin.layout)
    if layout is None:
        raise WeightsError(
            f"{options.source} came in no other project's layout; say --layout clip4clip, "
            "actionclip, mmaction2, tsm, openai or transformers"
        )
    written = convert(
        model, options.target, layout, variant=options.variant, precision=options.precision
    )
    print(f"{options.target}: in the layout of {TITLES.get(layout, layout)}")
    if written is not None:
        _tell(written)
    said = ""
    if options.variant and layout in PROJECTS:
        said = f", variant={options.variant!r}"
    if layout == "openai" and model.config.text.activation != "quick_gelu":
        said = f", activation={model.config.text.activation!r}"
    print(f"videoclip.load({str(options.target)!r}{said}) opens it")


def _tell(written: Written) -> None:
    """Prints what a file holds, and what it does not."""
    types = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in _tensors(written.found))
    print(", ".join(f"{count} tensors of {kind}" for kind, count in types.most_common()))
    if written.retyped:
        some = ", ".join(written.retyped[:3]) + (", ..." if len(written.retyped) > 3 else "")
        print(f"of another type than in the file they came from: {len(written.retyped)} ({some})")
    if written.left_out:
        print(f"left out, since it belongs to no model: {', '.join(written.left_out)}")
    if written.untold:
        print(f"the layout has no place for: {', '.join(written.untold)}")


def _tensors(found: Mapping[str, Any]) -> Iterator[Tensor]:
    for value in found.values():
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping):
            yield from _tensors(value)
