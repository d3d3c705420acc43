"""The trained predictor: its two matrices against loops, its training, and what decodes with it."""

import pytest
import torch
from calibrations import calibrated
from reference import highest
from tiny import LAYERS, SHAPE, answer, batch

import coremat
from coremat.cost.schedule import Schedule
from coremat.errors import ConfigError, UnsupportedError
from coremat.ffn import per_token
from coremat.methods.predictor import TrainedPredictor, most_likely, recall, scores, trained
from coremat.methods.reads import Reads
from coremat.methods.registry import with_options
from coremat.offload.ffn_streaming import offloaded_ffn

SPEC = "predictor:rank=8:beta=0.4"


def test_a_score_is_two_matrices_with_a_relu_between():
    draw = torch.Generator().manual_seed(0)
    x, inner, outer = (torch.randn(*size, generator=draw) for size in ((2, 3, 6), (4, 6), (20, 4)))
    for row in range(2):
        for token in range(3):
            hidden = [max(0.0, sum(w * v for w, v in zip(line, x[row, token], strict=True))) for line in inner]
            for neuron in range(20):
                wanted = sum(w * v for w, v in zip(outer[neuron], hidden, strict=True))
                assert float(scores(x, inner, outer)[row, token, neuron]) == pytest.approx(float(wanted), abs=1e-5)


def test_the_likeliest_are_the_highest_scores_ties_to_the_lower_index():
    values = torch.tensor([[0.5, -3.0, 1.0, -1.0, 1.0, 1.0], [0.0, 0.0, 0.0, -1.0, 0.0, 0.0]])
    for row, found in zip(values.tolist(), most_likely(values, 2).tolist(), strict=True):
        assert found == highest(row, 2)


def test_recall_is_the_share_of_active_neurons_that_were_found():
    found = torch.tensor([[True, True, False], [False, True, True]])
    active = torch.tensor([[True, False, True], [False, True, True]])
    assert float(recall(found, active)) == 3 / 4


def test_training_finds_what_can_be_known_and_is_the_same_for_the_same_seed():
    """Which neurons are active depends on two directions of the input, so a rank of 8 is enough."""
    draw = torch.Generator().manual_seed(0)
    x, hidden = torch.randn(600, 16, generator=draw), torch.randn(16, 2, generator=draw)
    active = most_likely(x @ hidden @ torch.randn(2, 40, generator=draw), 10)
    inner, outer = trained(x[:400] * 50, active[:400], 8, 3, 1)
    assert (inner.shape, outer.shape) == ((8, 16), (40, 8))
    found = most_likely(scores(x[400:] * 50, inner, outer), 10)
    often = most_likely(active[:400].float().sum(0, keepdim=True), 10).expand_as(found)
    assert recall(found, active[400:]) > 0.8 > recall(often, active[400:]) + 0.2
    again = trained(x[:400] * 50, active[:400], 8, 3, 1)
    assert torch.equal(inner, again[0])
    assert torch.equal(outer, again[1])
    assert not torch.equal(inner, trained(x[:400] * 50, active[:400], 8, 3, 2)[0])


@pytest.mark.parametrize("name", ["one", "ragged"])
def test_a_token_uses_the_neurons_that_were_predicted_from_what_its_ffn_reads(model, name):
    method = calibrated(SPEC)
    state = method.setup(model)

    def replaced(mlp, inner, outer):
        def hook(module, args, out):
            x = args[0]
            if x.shape[1] > 1:
                return None
            active = mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)
            for row in range(len(x)):
                said = (outer @ (inner @ x[row, 0]).clamp(min=0)).tolist()
                active[row, 0] *= torch.tensor(highest(said, 64)).float()
            return mlp.down_proj(active)

        return hook

    handles = [
        layer.mlp.register_forward_hook(replaced(layer.mlp, state["inner"][number], state["outer"][number]))
        for number, layer in enumerate(model.get_decoder().layers)
    ]
    try:
        expected = answer(model, batch(name))
    finally:
        for handle in handles:
            handle.remove()
    with coremat.apply(model, method) as session:
        found = answer(model, batch(name))
        assert all(set(row.neurons_kept) == {64} for row in session.stats)
        assert session.workspace_bytes == 6 * 4 * 8 * (64 + 160)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-5, atol=1e-5)


def test_recall_is_in_the_file_and_better_than_chance(model):
    state = calibrated(SPEC).setup(model)
    assert state["recall"].shape == state["recall of the most frequent"].shape == (6,)
    assert (state["recall"] > 0.4).all()
    assert set(TrainedPredictor().figures(state)) == {"recall", "recall of the most frequent"}


@pytest.mark.parametrize("other", [{"beta": 0.2}, {"rank": 4}, {"fit_seed": 1}])
def test_it_is_refused_for_other_options_than_it_was_trained_with(model, other):
    with pytest.raises(ConfigError, match=f"was made with beta=0.4, rank=8, fit_seed=0, .*{next(iter(other))}"):
        with_options(calibrated(SPEC), **other).setup(model)


def test_its_matrices_are_read_at_every_token():
    assert TrainedPredictor(beta=0.25, rank=8).reads(0, SHAPE) == Reads.of_neurons(40, 160, extra=8 * (64 + 160))


def test_what_is_counted_is_what_is_read(model, monkeypatch):
    """Rows that a decode step of a single sequence asks for: of gate and up, and of down."""
    read = {"row_products": 0, "summed_rows": 0}

    def counting(name):
        real = getattr(per_token, name)

        def counted(x, index, rows):
            read[name] += index.numel() * rows.shape[1]
            return real(x, index, rows)

        monkeypatch.setattr(per_token, name, counted)

    counting("row_products")
    counting("summed_rows")
    method = calibrated(SPEC)
    with coremat.apply(model, method) as session:
        answer(model, batch("one"), new=3)
        [stats] = session.stats
    assert read == {"row_products": 2 * LAYERS * 2 * 64 * 64, "summed_rows": 2 * LAYERS * 64 * 64}
    reads = Schedule.of(method, LAYERS, SHAPE, 16, 4).reads
    assert sum(read.values()) == 2 * sum(own.ffn(SHAPE) for own in reads)
    assert stats.ffn_bytes_per_token == 4 * sum(own.ffn(SHAPE) + own.extra for own in reads)


def test_offloaded_weights_are_refused(model):
    refused = pytest.raises(UnsupportedError, match="offloaded; accepted by predictor: weights that")
    with offloaded_ffn(model, "cpu"), refused:
        coremat.apply(model, calibrated(SPEC)).__enter__()
