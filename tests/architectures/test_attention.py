"""Attention against NumPy and PyTorch's own; weights sum to one, under padding too."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from architectures import WindowShape
from architectures.attention import Attention, HierarchicalAttention, masked_softmax, weighted_sum
from architectures.transformer import EncoderLayer, MultiHeadAttention, Transformer, encode_positions
from tests.architectures.test_architectures import B, F, T, network_of, windows

RTOL = 1e-9


def arrays(network: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in network.state_dict().items()}


def weights_of(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores)
    return powers / powers.sum()


@given(steps=st.integers(1, 9), padding=st.integers(0, 8))
def test_weights_sum_to_one_and_padding_has_none(steps: int, padding: int) -> None:
    generator = torch.Generator().manual_seed(0)
    e_BT = torch.randn(3, padding + steps, dtype=torch.float64, generator=generator)
    h_BTH = torch.randn(3, padding + steps, 4, dtype=torch.float64, generator=generator)
    a_BT = masked_softmax(e_BT, torch.arange(padding + steps) >= padding)
    assert not a_BT[:, :padding].any()
    for a_T, e_T in zip(a_BT[:, padding:].numpy(), e_BT[:, padding:].numpy(), strict=True):
        np.testing.assert_allclose(a_T, weights_of(e_T), rtol=RTOL)
    expected = sum(a_BT[:, t, None] * h_BTH[:, t] for t in range(padding, padding + steps))
    torch.testing.assert_close(weighted_sum(a_BT, h_BTH), expected)
    torch.testing.assert_close(a_BT.sum(dim=1), torch.ones(3, dtype=torch.float64))


# Attention over states.


def attention_of(units: int = 5) -> Attention:
    network = network_of("attention", {"units": units}).double()
    assert isinstance(network, Attention)
    return network


@pytest.mark.parametrize("padding", [0, 7])
def test_attention_over_states_follows_its_equations(padding: int) -> None:
    network, x_BTF = attention_of(), windows().double()
    mask_BT = (torch.arange(T) >= padding).expand(B, T) if padding else None
    weights = arrays(network)
    found_B = network(x_BTF, mask_BT).detach().numpy()
    found_BT = network.weights(x_BTF, mask_BT).detach().numpy()
    for b, h_TH in enumerate(network.gru(x_BTF)[0].detach().numpy()):
        a_T = weights_of(h_TH[padding:] @ weights["query.weight"] @ h_TH[-1])
        context = a_T @ h_TH[padding:]
        attended = np.tanh(weights["combine.weight"] @ np.concatenate([context, h_TH[-1]]))
        np.testing.assert_allclose(found_BT[b], np.concatenate([np.zeros(padding), a_T]), rtol=RTOL)
        np.testing.assert_allclose(
            found_B[b], weights["output.weight"][0] @ attended + weights["output.bias"][0], rtol=RTOL
        )


def test_each_window_has_a_mask_of_its_own() -> None:
    network, x_BTF = attention_of(), windows().double()
    padding_B = torch.arange(B)
    a_BT = network.weights(x_BTF, torch.arange(T) >= padding_B[:, None])
    torch.testing.assert_close(a_BT.sum(dim=1), torch.ones(B, dtype=torch.float64))
    for a_T, padding in zip(a_BT, padding_B, strict=True):
        assert not a_T[:padding].any()
        assert a_T[padding:].all()


# Attention over segments.


def hierarchical_of(steps: int, day: float, segment: float = 1.0) -> HierarchicalAttention:
    shape = WindowShape(steps, F, 0, horizon=1, day=day)
    network = network_of("hierarchical_attention", {"segment": segment, "units": 3}, shape=shape).double()
    assert isinstance(network, HierarchicalAttention)
    return network


def encoded(encoder: nn.Module, x_TF: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """One sequence as a vector, by the paper's equations over the states of its GRU; and the weights."""
    weights = arrays(encoder)
    h_TH = encoder.gru(x_TF[None])[0][0].detach().numpy()
    u_TH = np.tanh(h_TH @ weights["hidden.weight"].T + weights["hidden.bias"])
    a_T = weights_of(u_TH @ weights["context.weight"][0])
    return a_T @ h_TH, a_T


@pytest.mark.parametrize("steps", [1, 3, 4, 5, 8, 10, 12])
def test_attention_over_segments_follows_its_equations(steps: int) -> None:
    """Segment by segment, the first one as short as it is."""
    network = hierarchical_of(steps, day=4)
    x_BTF = torch.randn(3, steps, F, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    actual = network(x_BTF).detach().numpy()
    a_BSL, a_BS = (weights.detach().numpy() for weights in network.weights(x_BTF))
    length = min(4, steps)
    assert a_BSL.shape == (3, math.ceil(steps / length), length)
    assert a_BS.shape == a_BSL.shape[:2]
    output = arrays(network.output)
    for b, x_TF in enumerate(x_BTF):
        ends = list(range(steps, 0, -length))[::-1]
        segments = [encoded(network.steps, x_TF[max(0, end - length) : end]) for end in ends]
        window, a_S = encoded(network.segments, torch.from_numpy(np.stack([vector for vector, _ in segments])))
        np.testing.assert_allclose(actual[b], output["weight"][0] @ window + output["bias"][0], rtol=RTOL)
        np.testing.assert_allclose(a_BS[b], a_S, rtol=RTOL)
        for found_L, (_, a_L) in zip(a_BSL[b], segments, strict=True):
            np.testing.assert_allclose(found_L, np.concatenate([np.zeros(length - len(a_L)), a_L]), rtol=RTOL)
    np.testing.assert_allclose(a_BSL.sum(axis=2), 1)
    np.testing.assert_allclose(a_BS.sum(axis=1), 1)


@pytest.mark.parametrize(
    ("day", "segment", "expected"),
    [(24, 1.0, (5, 24)), (24, 0.5, (10, 12)), (24, 7.0, (1, 120)), (9.6, 1.0, (12, 10)), (1, 1.0, (120, 1))],
)
def test_a_segment_is_days_in_whole_steps(day: float, segment: float, expected: tuple[int, int]) -> None:
    a_BSL, _ = hierarchical_of(120, day, segment).weights(torch.zeros(2, 120, F, dtype=torch.float64))
    assert a_BSL.shape[1:] == expected


# The Transformer.


def copied(ours: MultiHeadAttention, theirs: nn.MultiheadAttention) -> None:
    pairs = [
        (theirs.in_proj_weight, ours.queries_keys_values.weight),
        (theirs.in_proj_bias, ours.queries_keys_values.bias),
        (theirs.out_proj.weight, ours.output.weight),
        (theirs.out_proj.bias, ours.output.bias),
    ]
    with torch.no_grad():
        for to, value in pairs:
            to.copy_(value)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads", [1, 3])
def test_multi_head_attention_is_pytorchs(heads: int, causal: bool) -> None:
    torch.manual_seed(0)
    ours = MultiHeadAttention(heads, 4, causal).double()
    theirs = nn.MultiheadAttention(4 * heads, heads, batch_first=True).double()
    nn.init.normal_(ours.queries_keys_values.bias)
    copied(ours, theirs)
    h_BTD = torch.randn(2, 7, 4 * heads, dtype=torch.float64)
    mask = nn.Transformer.generate_square_subsequent_mask(7, dtype=torch.float64) if causal else None
    expected, maps = theirs(h_BTD, h_BTD, h_BTD, attn_mask=mask, average_attn_weights=False)
    torch.testing.assert_close(ours(h_BTD), expected, rtol=RTOL, atol=1e-12)
    torch.testing.assert_close(ours.weights(h_BTD), maps, rtol=RTOL, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_multi_head_attention_follows_its_equations(causal: bool) -> None:
    torch.manual_seed(0)
    made = MultiHeadAttention(2, 3, causal).double()
    h_BTD = torch.randn(2, 5, 6, dtype=torch.float64)
    weights = arrays(made)
    for h_TD, found_TD in zip(h_BTD.numpy(), made(h_BTD).detach().numpy(), strict=True):
        q, k, v = np.split(h_TD @ weights["queries_keys_values.weight"].T + weights["queries_keys_values.bias"], 3, 1)
        for t in range(5):
            last = t + 1 if causal else 5
            heads = [
                weights_of(k[:last, at] @ q[t, at] / math.sqrt(3)) @ v[:last, at] for at in (slice(0, 3), slice(3, 6))
            ]
            expected = weights["output.weight"] @ np.concatenate(heads) + weights["output.bias"]
            np.testing.assert_allclose(found_TD[t], expected, rtol=RTOL)


def test_a_layer_is_pytorchs() -> None:
    torch.manual_seed(0)
    ours = EncoderLayer(heads=2, head_width=4, feedforward=9, dropout=0.0, causal=False).double()
    theirs = nn.TransformerEncoderLayer(8, 2, dim_feedforward=9, dropout=0.0, batch_first=True).double()
    copied(ours.attention, theirs.self_attn)
    theirs.linear1.load_state_dict(ours.feedforward[0].state_dict())
    theirs.linear2.load_state_dict(ours.feedforward[2].state_dict())
    h_BTD = torch.randn(2, 7, 8, dtype=torch.float64)
    torch.testing.assert_close(ours(h_BTD), theirs(h_BTD), rtol=RTOL, atol=1e-12)


@pytest.mark.parametrize("width", [1, 4, 7])
def test_positions_are_the_papers(width: int) -> None:
    actual = encode_positions(130, width).numpy()
    for t in (0, 1, 129):
        for d in range(width):
            angle = t / 10000 ** (2 * (d // 2) / width)
            assert actual[t, d] == pytest.approx(math.cos(angle) if d % 2 else math.sin(angle), abs=1e-12)


def transformer_of(causal: bool) -> Transformer:
    network = network_of("transformer", {"causal": causal, "layers": 3, "heads": 3, "head_width": 4}).double()
    assert isinstance(network, Transformer)
    return network


@pytest.mark.parametrize("causal", [False, True])
def test_a_causal_transformer_looks_at_no_later_step(causal: bool) -> None:
    network, x_BTF = transformer_of(causal), windows().double()
    other = x_BTF.clone()
    other[:, 9] += 1
    before, after = network.states(x_BTF)[-1], network.states(other)[-1]
    # The kernel may add up in another order where other numbers lie beside, hence no equality to the bit.
    unchanged = torch.isclose(after, before, rtol=1e-9, atol=1e-12).all(dim=2)
    assert unchanged[:, :9].all() == causal
    assert not unchanged[:, 9:].any()
    maps_BLNTS = network.maps(x_BTF)
    assert maps_BLNTS.shape == (B, 3, 3, T, T)
    torch.testing.assert_close(maps_BLNTS.sum(dim=4), torch.ones(B, 3, 3, T, dtype=torch.float64))
    assert bool(maps_BLNTS.triu(1).any()) != causal


def test_a_transformer_knows_the_order_of_its_inputs() -> None:
    network, x_BTF = transformer_of(causal=False), windows().double()
    other = x_BTF.clone()
    other[:, [3, 4]] = x_BTF[:, [4, 3]]
    assert not torch.isclose(network(other), network(x_BTF), rtol=1e-6).any()


def test_the_transformer_is_pytorchs_layers_on_inputs_with_positions() -> None:
    network, x_BTF = transformer_of(causal=True), windows().double()
    h_BTD = network.embedding(x_BTF) + encode_positions(T, 12).float()
    mask = nn.Transformer.generate_square_subsequent_mask(T, dtype=torch.float64)
    for ours in network.layers:
        theirs = nn.TransformerEncoderLayer(12, 3, dim_feedforward=32, dropout=0.0, batch_first=True).double()
        copied(ours.attention, theirs.self_attn)
        theirs.linear1.load_state_dict(ours.feedforward[0].state_dict())
        theirs.linear2.load_state_dict(ours.feedforward[2].state_dict())
        h_BTD = theirs(h_BTD, src_mask=mask)
    torch.testing.assert_close(network(x_BTF), network.output(h_BTD[:, -1]), rtol=RTOL, atol=1e-12)
