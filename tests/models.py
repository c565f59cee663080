"""A tiny model and clips for the tests; every slot combination is built from the folders."""

import itertools

import torch

from videoclip.config import SLOTS, members
from videoclip.heads import Head
from videoclip.mixers import Mixer
from videoclip.model import Model, VideoCLIP
from videoclip.scorers import Scorer
from videoclip.towers import Text, ViT

MIXERS = members(Mixer)
HEADS = members(Head)
SCORERS = members(Scorer)
COMBINATIONS = list(itertools.product(MIXERS, HEADS, SCORERS))
SIZE = 16
WORDS = 12


def build(
    mixer: str | Mixer = "none",
    head: str | Head = "mean",
    scorer: str | Scorer = "cosine",
    **fields,
) -> VideoCLIP:
    """A model with these members; temporal weights are moved away from their start."""
    torch.manual_seed(0)
    chosen = zip(SLOTS, (mixer, head, scorer), (MIXERS, HEADS, SCORERS), strict=True)
    slots = {slot: known[one]() if isinstance(one, str) else one for slot, one, known in chosen}
    towers = {
        "visual": ViT(width=64, layers=2, patch_size=8, image_size=SIZE),
        "text": Text(width=32, layers=2, context_length=WORDS, vocabulary=100),
        "embedding": 32,
    }
    model = Model(**(towers | slots | fields)).build()
    with torch.no_grad():  # what starts at zero would hide that it is never read
        for parameter in model.new_parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def clips(count: int = 3, frames: int = 5) -> torch.Tensor:
    """Normalized clips (count, frames, 3, SIZE, SIZE)."""
    return torch.randn(count, frames, 3, SIZE, SIZE)


def captions(count: int = 4) -> torch.Tensor:
    """Token ids (count, WORDS) of different lengths; 99 ends a caption."""
    ids = torch.zeros(count, WORDS, dtype=torch.long)
    for row in range(count):
        length = 3 + row % (WORDS - 4)
        ids[row, 0] = 98
        ids[row, 1:length] = torch.randint(1, 98, (length - 1,))
        ids[row, length] = 99
    return ids
