"""The plain product is a linear layer over classes, with its bias or without."""

import pytest
import torch
import torch.nn.functional as F

from videoclip.model import Model
from videoclip.scorers import Dot
from videoclip.towers import Labels, Network
from videoclip.towers.labels import LabelTable
from videoclip.types import Embedding


def embedding(vector: torch.Tensor) -> Embedding:
    return Embedding(vector, vector[:, None], torch.ones(len(vector), 1, dtype=torch.bool))


@pytest.mark.parametrize("bias", [True, False])
def test_it_is_a_linear_layer(bias: bool) -> None:
    table = LabelTable(Labels(classes=("a", "b", "c"), bias=bias), 8)
    if bias:
        torch.nn.init.normal_(table.label_bias)
    assert (table.label_bias is not None) == bias
    ids, video = torch.tensor([[2], [0], [1]]), torch.randn(5, 8)
    text = table.encode_text(ids)
    assert text.shape == (3, 8 + bias)
    found = Dot().build(8)(embedding(text), embedding(video), torch.tensor(3.0))
    wanted = F.linear(video, table.label_embedding.weight, table.label_bias)[:, [2, 0, 1]]
    torch.testing.assert_close(found, wanted.T)


def test_a_bias_needs_it() -> None:
    fields = {"visual": Network(), "text": Labels(classes=("a",), bias=True)}
    with pytest.raises(ValueError, match=r"classes with a bias need the scorer Dot, and .*Cosine"):
        Model(**fields)
    model = Model(**fields, scorer=Dot(), embedding=16).build()
    assert any(parameter is model.clip.label_bias for parameter in model.new_parameters())
