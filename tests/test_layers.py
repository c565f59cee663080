"""The layers' own ways of computing, against torch's."""

import pytest
import torch
import torch.nn.functional as F
from foreign import randomized

from videoclip.layers import (
    FEW_ROWS,
    Blocks,
    LayerNorm,
    ResidualBlock,
    attention,
    linear,
    positions,
)
from videoclip.layers import quick_gelu as activation

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def test_quick_gelu_and_its_gradient() -> None:
    x = torch.linspace(-12, 12, 1000, requires_grad=True)
    expected = x * torch.sigmoid(1.702 * x)
    torch.testing.assert_close(activation(x), expected, atol=1e-6, rtol=0)
    slopes = [torch.autograd.grad(y.sum(), x)[0] for y in (activation(x), expected)]
    torch.testing.assert_close(*slopes, atol=1e-6, rtol=0)


@pytest.mark.parametrize("rows", [0, 1, FEW_ROWS - 1, FEW_ROWS, 1000])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("threads", [1, 2])
def test_linear_and_its_gradients(rows: int, with_bias: bool, threads: int) -> None:
    """torch takes other ways with one thread than with two."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    inputs = [torch.randn(rows, 1, 48), torch.randn(80, 48)] + [torch.randn(80)] * with_bias
    inputs = [part.transpose(0, 1).contiguous().transpose(0, 1) for part in inputs[:1]] + inputs[1:]
    inputs = [part.requires_grad_() for part in inputs]
    found, expected = linear(*inputs), F.linear(*inputs)
    torch.testing.assert_close(found, expected, **CLOSE)
    weight = torch.randn_like(expected)
    for mine, theirs in zip(
        torch.autograd.grad((found * weight).sum(), inputs),
        torch.autograd.grad((expected * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-5)
    torch.set_num_threads(before)


def test_linear_in_other_types_is_torch_s() -> None:
    x, weight = torch.randn(300, 8), torch.randn(16, 8)
    assert torch.equal(linear(x.double(), weight.double()), F.linear(x.double(), weight.double()))
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["all", "causal", "masked"])
def test_attention(dtype: torch.dtype, kind: str) -> None:
    query, key, value = (torch.randn(3, 2, 7, 16, dtype=dtype) for _ in range(3))
    seen = torch.rand(3, 1, 1, 7) < 0.5 if kind == "masked" else None
    if seen is not None:
        seen[..., 2] = True
    found = attention(query, key, value, seen, causal=kind == "causal")
    expected = F.scaled_dot_product_attention(
        query.float(), key.float(), value.float(), seen, is_causal=kind == "causal"
    )
    far = 1e-6 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(found.float(), expected, atol=far, rtol=0)
    assert found.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights", [torch.float32, None])
def test_layers_are_normalized_in_float32(dtype: torch.dtype, weights: torch.dtype | None) -> None:
    norm, x = LayerNorm(64).to(weights or dtype), (100 + torch.randn(5, 64)).to(dtype)
    with torch.no_grad():
        norm.weight.normal_()
    expected = F.layer_norm(x.float(), (64,), norm.weight.float(), norm.bias.float())
    torch.testing.assert_close(norm(x), expected.to(dtype))


@pytest.mark.parametrize("rows", [slice(0, 1), slice(4, 5), slice(3, 5)])
@pytest.mark.parametrize("masked", [False, True])
def test_queries_get_what_their_rows_would_get(rows: slice, masked: bool) -> None:
    """One row goes another way than several: keys and values are not computed for it."""
    block = randomized(ResidualBlock(64, 2))
    x, mask = torch.randn(2, 3, 9, 64, requires_grad=True), torch.rand(2, 3, 9) < 0.7
    mask[..., 0] = True
    mask = mask if masked else None
    found, expected = block(x, mask, queries=x[..., rows, :]), block(x, mask)[..., rows, :]
    torch.testing.assert_close(found, expected, **CLOSE)
    inputs, weight = [x, *block.parameters()], torch.randn_like(found)
    for mine, theirs in zip(
        torch.autograd.grad((found * weight).sum(), inputs),
        torch.autograd.grad((expected * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def test_reading_at_the_ends_gives_what_all_rows_would_hold_there() -> None:
    blocks, x = Blocks(64, 3, 2), torch.randn(4, 9, 64, requires_grad=True)
    ends = torch.tensor([8, 0, 3, 5])
    whole = x
    for block in blocks.resblocks:
        whole = block(whole, causal=True)
    found, expected = blocks.read(x, ends), whole[torch.arange(4), ends]
    torch.testing.assert_close(found, expected, **CLOSE)
    parameters = [x, *blocks.parameters()]
    for mine, theirs in zip(
        torch.autograd.grad(found.square().sum(), parameters),
        torch.autograd.grad(expected.square().sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def test_positions_are_sliced_up_to_the_table_s_end_and_stretched_beyond() -> None:
    """Slicing is the reference projects'; stretching is torch's linear interpolation."""
    table = torch.randn(8, 16)

    def stretched(length: int) -> torch.Tensor:
        return F.interpolate(table.T[None], length, mode="linear", align_corners=True)[0].T

    lengths = torch.tensor([1, 2, 8, 9, 20])
    mask = torch.arange(20) < lengths[:, None]
    found, spread = positions(table, mask), positions(table, mask, spread=True)
    for row, length in enumerate(lengths.tolist()):
        wanted = table[:length] if length <= 8 else stretched(length)
        torch.testing.assert_close(found[row, :length], wanted, **CLOSE)
        torch.testing.assert_close(spread[row, :length], stretched(length), **CLOSE)
        alone = positions(table, mask[row : row + 1, :length])
        assert torch.equal(alone[0], found[row, :length]), "padding changes nothing"
    holes = torch.tensor([[True, False, True, False]])
    torch.testing.assert_close(
        positions(table[:2], holes)[0, :3],
        table[[0, 0, 1]].lerp(table[[0, 1, 1]], torch.tensor([0, 0.5, 0])[:, None]),
    )
    assert torch.equal(positions(table[:1], mask), table[:1].expand(5, 20, -1))
