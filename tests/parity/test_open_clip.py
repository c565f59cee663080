"""Both towers against open_clip, which has OpenAI's parameter names too; random weights."""

import open_clip
import pytest
import torch

from videoclip.layers import Activation
from videoclip.model import Model
from videoclip.towers import Text, ViT
from videoclip.weights import load_exactly


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize(("layers", "patch", "size"), [(3, 16, 64), (24, 14, 56)])
def test_features_logits_and_gradients(
    activation: Activation, layers: int, patch: int, size: int
) -> None:
    theirs = open_clip.model.CLIP(
        embed_dim=64,
        vision_cfg={"width": 128, "layers": layers, "patch_size": patch, "image_size": size},
        text_cfg={"width": 128, "layers": 3, "heads": 2, "vocab_size": 1000},
        quick_gelu=activation == "quick_gelu",
    ).eval()
    config = Model(
        visual=ViT(
            width=128, layers=layers, patch_size=patch, image_size=size, activation=activation
        ),
        text=Text(width=128, layers=3, vocabulary=1000, activation=activation),
        embedding=64,
    )
    ours = config.build().eval()
    load_exactly(ours.clip, theirs.state_dict(), "open_clip")
    images = torch.randn(3, 3, size, size)
    ids = torch.zeros(4, 77, dtype=torch.long)
    ids[:, :8] = torch.randint(1, 900, (4, 8))
    ids[torch.arange(4), torch.tensor([3, 5, 7, 4])] = 999
    for row, end in enumerate([3, 5, 7, 4]):
        ids[row, end + 1 :] = 0
    image, text = theirs.encode_image(images), theirs.encode_text(ids)
    torch.testing.assert_close(ours.encode_image(images), image, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.encode_text(ids), text, atol=1e-5, rtol=0)
    by_image, _ = theirs.get_logits(images, ids)
    found = ours.similarity(ids, images[:, None])
    torch.testing.assert_close(found, by_image.T, atol=1e-5, rtol=0)
    by_image.logsumexp(0).mean().backward()
    found.logsumexp(1).mean().backward()
    gradients = dict(ours.clip.named_parameters())
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(gradients[name].grad, parameter.grad, atol=1e-5, rtol=1e-4)
