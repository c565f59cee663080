"""Model <-> folder: safetensors for the weights, strict JSON for the configuration.

Nothing that is read is executed, and a key that is missing, unexpected or misshapen is an error
that lists all of them.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from videoclip.config import from_json, nearest, to_json
from videoclip.errors import VideoclipError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from videoclip.model import VideoCLIP

WEIGHTS = "model.safetensors"
CONFIG = "videoclip.json"
FORMAT = 1


class WeightsError(VideoclipError):
    """A checkpoint that cannot be loaded; the message lists every key that is wrong."""


def save(model: "VideoCLIP", folder: Path) -> None:
    """Writes a model into a folder; the configuration comes last, so half a folder never loads."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)
    weights = {key: value.detach().contiguous() for key, value in model.state_dict().items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    text = json.dumps({"format": FORMAT, "model": to_json(model.config)}, indent=2)
    partial = folder / (CONFIG + ".part")
    partial.write_text(text + "\n")
    partial.replace(folder / CONFIG)


def load(source: str | Path) -> "VideoCLIP":
    """Opens a model that `save_pretrained` wrote, in evaluation mode.

    Raises WeightsError where the folder is not one of those or a key does not fit.
    """
    from videoclip.model import Model

    folder = Path(source)
    if not (folder / CONFIG).is_file():
        what = "is not a folder" if not folder.is_dir() else f"holds no complete model ({CONFIG})"
        raise WeightsError(f"{folder} {what}; give a folder that save_pretrained wrote")
    try:
        written = json.loads((folder / CONFIG).read_text())
        weights = load_file(folder / WEIGHTS)
    except (OSError, json.JSONDecodeError, SafetensorError) as error:
        raise WeightsError(f"{folder} is damaged: {error}; save the model again") from error
    if written.get("format") != FORMAT:
        raise WeightsError(
            f"{folder} has format {written.get('format')!r}, this version reads {FORMAT}; "
            "use the version of videoclip that wrote it"
        )
    model = from_json(Model, written["model"], "model").build()
    load_exactly(model, weights, str(folder))
    return model.eval()


def load_exactly(module: "nn.Module", weights: "dict[str, Tensor]", source: str) -> None:
    """Loads weights into a module, or raises WeightsError that lists every key that is wrong."""
    wanted = module.state_dict()
    missing, unexpected = wanted.keys() - weights.keys(), weights.keys() - wanted.keys()
    faults = [f"  missing: {key}" for key in missing]
    faults += [f"  unexpected: {key}; {nearest(key, missing)}" for key in unexpected]
    faults += [
        f"  misshapen: {key} is {tuple(weights[key].shape)}, expected {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in weights and weights[key].shape != value.shape
    ]
    if faults:
        raise WeightsError(
            f"the weights of {source} do not fit the model:\n" + "\n".join(sorted(faults))
        )
    module.load_state_dict(weights)
