"""The vision transformer: its last block is run for what is read, and only for that."""

import pytest
import torch
from models import build, clips

from videoclip.types import Frames


@torch.no_grad()
@pytest.mark.parametrize("mixer", ["none", "shift"])
def test_the_last_block_is_run_for_what_is_read(mixer: str) -> None:
    model = build(mixer)
    rows = []
    blocks = model.clip.visual.transformer.resblocks
    for block in blocks:
        block.mlp["c_fc"].register_forward_hook(lambda *call: rows.append(call[1][0].shape[-2]))
    frames = Frames(clips(2, 3), torch.ones(2, 3, dtype=torch.bool))
    short = model.clip.visual(*frames, model.mixers)
    whole = model.clip.visual(*frames, model.mixers, keep_layers=1)
    tokens = whole.layers[0].shape[2]
    assert rows == [tokens, 1 if mixer == "none" else tokens, tokens, tokens]
    torch.testing.assert_close(short.frames, whole.frames, atol=1e-5, rtol=0)
