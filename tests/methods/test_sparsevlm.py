"""SparseVLM and SparseVLM+ against loops: budgets, raters, scores of every stage of a real model, and clusters."""

import math
from dataclasses import dataclass

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import quick, seeded, seeds
from tiny import BOS, IMAGE, IMAGE_ID, LAYERS, answer, batch, make_inputs

import coremat
from coremat.errors import ConfigError, UnsupportedError
from coremat.methods import registry, sparsevlm
from coremat.methods.base import Stage
from coremat.methods.budget import budget
from coremat.methods.common.random import generator
from coremat.methods.sparsevlm import SparseVLM, SparseVLMPlus, cluster_means, depths, rotary_bias, text_raters
from coremat.methods.views import LayerView, PromptView
from coremat.models.families import adapter_for
from coremat.testing.dense_reference import chosen, hidden_and_silenced, merged_states
from coremat.testing.families import FAMILIES

BOTH = pytest.mark.parametrize("method", [SparseVLM, SparseVLMPlus])

# --- stages and budgets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "places"),
    [(32, [3, 7, 16]), (40, [3, 8, 20]), (28, [2, 6, 14]), (6, [1, 2, 3]), (3, [1, 2]), (2, [1])],
)
def test_stages_stand_behind_the_layers_2_6_and_15_of_32(layers, places):
    assert depths(layers) == places
    assert [stage.after for stage in SparseVLM().stages(layers)] == places


PUBLISHED = [
    (SparseVLM, 192, [300, 200, 110]),
    (SparseVLM, 128, [303, 110, 36]),
    (SparseVLM, 96, [238, 48, 26]),
    (SparseVLM, 64, [66, 30, 17]),
    (SparseVLMPlus, 192, [300, 200, 118]),
    (SparseVLMPlus, 128, [238, 108, 60]),
    (SparseVLMPlus, 96, [246, 54, 28]),
    (SparseVLMPlus, 64, [66, 34, 20]),
]


@pytest.mark.parametrize(("method", "name", "published"), PUBLISHED)
def test_the_published_budgets_by_count_and_by_share(method, name, published):
    assert [stage.keep for stage in method(tokens=name).stages(32)] == published
    for share in (name / 576, round(name / 576 + 0.00005, 4)):
        assert [budget(stage.keep, 576) for stage in method(tokens=share).stages(32)] == published


def test_by_default_the_budgets_are_those_of_192_of_576():
    for method in (SparseVLM, SparseVLMPlus):
        assert [budget(stage.keep, 576) for stage in method().stages(32)] == list(method.published[192])
    assert [budget(stage.keep, 144) for stage in SparseVLM().stages(32)] == [75, 50, 27]


@pytest.mark.parametrize(
    ("tokens", "budgets"),
    [
        (160, [301, 155, 73]),
        (384, [438, 388, 343]),
        (576, [576] * 3),
        (900, [900] * 3),
        (32, [33, 15, 8]),
        (1, [1] * 3),
    ],
)
def test_budgets_between_the_published_ones(tokens, budgets):
    assert [stage.keep for stage in SparseVLM(tokens=tokens).stages(32)] == budgets


@BOTH
def test_the_mean_over_layers_as_the_authors_count_it_is_the_name(method):
    for name in range(64, 577):
        first, second, third = (stage.keep for stage in method(tokens=name).stages(32))
        assert first >= second >= third
        assert abs((2 * 576 + 4 * first + 10 * second + 16 * third) / 32 - name) < 6


def test_all_tokens_stay_for_a_share_of_one():
    assert [stage.keep for stage in SparseVLM(tokens=1.0).stages(32)] == [1.0, 1.0, 1.0]


def test_budgets_and_layers_can_be_typed():
    method = registry.parse("sparsevlm:budgets=9/0.25/2:layers=1/3/5")
    assert [(stage.after, stage.keep) for stage in method.stages(6)] == [(1, 9), (3, 0.25), (5, 2)]
    assert [(s.after, s.keep) for s in SparseVLMPlus(budgets=(8, 4), layers=(1, 2)).stages(32)] == [(1, 8), (2, 4)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budgets": (300, 200)}, r"there are 2 budgets \(300/200\) for 3 stages; accepted: as many budgets as layers"),
        ({"budgets": (9, 8, 7, 6)}, r"there are 4 budgets \(9/8/7/6\) for 3 stages; .* 3 where no layers are given"),
        ({"budgets": (300,), "layers": (2, 5)}, r"there are 1 budgets \(300\) for 2 stages"),
        ({"layers": (2,)}, r"there are 3 budgets \(by tokens\) for 1 stages"),
        ({"budgets": (300, 200, 0)}, r"budgets is \(300, 200, 0\); accepted: one or more, divided by /"),
        ({"tokens": "knee"}, "tokens is 'knee'; accepted: a count of at least 1, a share"),
    ],
)
def test_budgets_that_cannot_be(options, words):
    with pytest.raises(ConfigError, match=words):
        SparseVLM(**options)


# --- raters -----------------------------------------------------------------------------------------------------------


def raters(inputs: list[list[float]], image: list[bool], valid: list[bool]) -> list[int]:
    """The columns of the raters of one sequence."""
    places = [c for c, own in enumerate(image) if own]
    text = [c for c, own in enumerate(valid) if own and c > max(places)] or [len(valid) - 1]
    match = dict.fromkeys(text, 0.0)
    for place in places:
        powers = {c: math.exp(reference.dot(inputs[place], inputs[c])) for c in text}
        for c in text:
            match[c] += powers[c] / sum(powers.values()) / len(places)
    return [c for c in text if match[c] > sum(match.values()) / len(text) + 1e-7] or text


def made_prompt(rows, seed: int, dtype=torch.float32) -> PromptView:
    """rows: how much padding, text, image and text again each has."""
    width = max(map(sum, rows))
    image = torch.full((len(rows), width), -1)
    valid = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, (_, before, places, behind) in enumerate(rows):
        valid[row, width - before - places - behind :] = True
        image[row, width - places - behind : width - behind] = 0
    inputs = torch.randn(len(rows), width, 6, generator=seeded(seed)).masked_fill(~valid[..., None], torch.nan)
    return PromptView(valid, image, inputs=lambda: inputs.to(dtype), images_on_host=lambda: image)


def found_raters(prompt: PromptView) -> torch.Tensor:
    return text_raters(prompt.inputs, prompt.valid, prompt.image_index >= 0, prompt.tail)


prompts = st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(1, 20), st.integers(0, 9))


@quick
@given(st.lists(prompts, min_size=1, max_size=4), seeds)
def test_raters_are_those_of_the_loops_in_padded_batches(rows, seed):
    prompt = made_prompt(rows, seed)
    found, width = found_raters(prompt), prompt.valid.shape[1]
    assert prompt.tail == max(1, *(behind for *_, behind in rows))
    for row in range(len(rows)):
        wanted = raters(
            prompt.inputs[row].tolist(), (prompt.image_index[row] >= 0).tolist(), prompt.valid[row].tolist()
        )
        assert (found[row].nonzero()[:, 0] + width - prompt.tail).tolist() == wanted


def test_raters_match_the_image_above_average():
    """Products of 2, 0 and 0 with both image tokens; a text token before the image has no say."""
    inputs = torch.tensor([[[9.0, 9], [1, 0], [1, 0], [2, 5], [0, 1], [0, 2]]])
    image = torch.tensor([[False, True, True, False, False, False]])
    assert text_raters(inputs, torch.ones_like(image), image, 3).tolist() == [[True, False, False]]


def test_where_no_text_is_above_the_mean_all_of_it_rates_and_without_text_the_last_token():
    image = torch.tensor([[False, True, True, False, False], [False, False, False, True, True]])
    assert text_raters(torch.ones(2, 5, 4), torch.ones_like(image), image, 2).tolist() == [[True, True], [False, True]]


def test_matches_are_computed_in_float32():
    prompt = made_prompt([(0, 2, 9, 9)], 3, torch.bfloat16)
    wide = PromptView(prompt.valid, prompt.image_index, inputs=prompt.inputs.float)
    assert torch.equal(found_raters(prompt), text_raters(wide.inputs, wide.valid, wide.image_index >= 0, prompt.tail))


def test_a_batch_without_images_has_a_tail_of_one():
    none = torch.full((2, 5), -1)
    assert PromptView(none >= 0, none, images_on_host=lambda: none).tail == 1


# --- scores, on a real model ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Seen:
    """One sequence: columns of image tokens and raters, all positions, and, per layer, the attention [heads, S, S]."""

    image: list[int]
    raters: list[int]
    positions: list[int]
    maps: list[torch.Tensor]


def seen(model, method, inputs) -> tuple[list[Seen], dict[int, torch.Tensor]]:
    """The sequences with images, as the dense model in which dropped tokens are hidden shows them; and what the stages
    chose."""
    with coremat.apply(model, method) as session, merged_states(session) as merged:
        answer(model, inputs, new=1)
        choice = chosen(session, merged)
    held = []
    first = adapter_for(model).layers[0].register_forward_pre_hook(lambda module, args: held.append(args[0]))
    with torch.no_grad(), hidden_and_silenced(model, method, choice):
        maps = model(**inputs, output_attentions=True).attentions
    first.remove()
    rows = []
    for row, valid in enumerate(inputs["attention_mask"].bool()):
        image = inputs["input_ids"][row] == IMAGE_ID
        says = raters(held[0][row].tolist(), image.tolist(), valid.tolist()) if image.any() else []
        rows.append(
            Seen(image.nonzero()[:, 0].tolist(), says, (valid.cumsum(0) - 1).tolist(), [own[row] for own in maps])
        )
    return rows, choice.stages


def plain(model, sequence: Seen, layer: int, columns: list[int]) -> list[float]:
    """The score of version 1.5."""
    heads = sequence.maps[layer].tolist()
    return [sum(head[q][c] for head in heads for q in sequence.raters) for c in columns]


def unbiased(model, sequence: Seen, layer: int, columns: list[int]) -> list[float]:
    """That of the second version: the bias of two positions is 2 / sqrt(d) times the sum of cos(angle)."""
    frequencies = adapter_for(model).decoder.rotary_emb.inv_freq.tolist()
    size = len(frequencies) * 2

    def bias(q: int, c: int) -> float:
        apart = sequence.positions[q] - sequence.positions[c]
        return 2 / math.sqrt(size) * sum(math.cos(apart * f) for f in frequencies)

    by_head = [
        [sum(head[q][c] / bias(q, c) for q in sequence.raters) for c in columns]
        for head in sequence.maps[layer].tolist()
    ]
    hears = sorted(range(len(by_head)), key=lambda h: (-sum(by_head[h]), h))[: math.floor(0.4375 * len(by_head))]
    return [sum(by_head[h][j] for h in hears) for j in range(len(columns))]


@pytest.mark.parametrize(("method", "score"), [(SparseVLM, plain), (SparseVLMPlus, unbiased)])
@pytest.mark.parametrize("name", ["one", "left-padded", "same-length"])
@pytest.mark.parametrize("block", [1, 64])
def test_every_stage_keeps_the_tokens_of_the_loops(eager_model, monkeypatch, method, score, name, block):
    monkeypatch.setattr(sparsevlm, "BLOCK", block)
    made = method(budgets=(11, 7, 4), positions="original")
    rows, stages = seen(eager_model, made, batch(name))
    for row, sequence in enumerate(rows):
        there = sequence.image
        for count, (after, left) in zip((11, 7, 4), sorted(stages.items()), strict=True):
            scores = score(eager_model, sequence, after - 1, there)
            best = [c for c, own in zip(there, reference.highest(scores, count), strict=True) if own]
            merged = len([c for c in there if left[row, c]]) - count
            dropped = [c for c in there if c not in best]
            expected = sorted(best + dropped[len(dropped) - merged :])
            assert [c for c in there if left[row, c]] == expected
            assert merged == (method is SparseVLM)
            there = expected


@BOTH
def test_prompts_without_text_behind_the_image_and_without_images(model, method):
    inputs = make_inputs([BOS, 30, IMAGE], [BOS, IMAGE, 31, IMAGE, 32, 33, 34], [BOS, 35])
    with coremat.apply(model, method(budgets=(9, 5, 3))) as session:
        assert answer(model, inputs).logits.isfinite().all()
    assert [row.image_tokens for row in session.stats] == [16, 32, 0]
    assert all(row.image_tokens_kept >= 3 for row in session.stats[:2])


def test_the_bias_is_that_of_ones_through_the_rotary_embedding(model):
    random = seeded(5)
    positions = torch.randint(0, 40, (2, 9), generator=random)
    rotary = adapter_for(model).decoder.rotary_emb
    cos, sin = rotary(torch.zeros(2, 9, 1), positions)
    columns = torch.tensor([[7, 8], [2, 3]])
    found = rotary_bias((cos, sin), columns)
    apart = positions.gather(1, columns)[..., None] - positions[:, None]
    wanted = 2 * (apart[..., None] * rotary.inv_freq).cos().sum(-1) / math.sqrt(cos.shape[-1])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_share_of_heads_is_heard_by_its_mass_on_images():
    rated = torch.tensor([[[9.0, 1, 1], [0, 2, 3], [0, 4, 0], [0, 0, 5]]])
    image = torch.tensor([[False, True, True]])
    for count, wanted in ((1, [0, 2, 3]), (2, [0, 1, 4]), (4, [2.25, 1.75, 2.25])):
        assert sparsevlm.heard(rated, image, count).tolist() == [wanted]


def test_positions_are_counted_anew_by_version_1_5_alone():
    assert {stage.positions for stage in SparseVLM().stages(32)} == {"auto"}
    assert {stage.positions for stage in SparseVLMPlus().stages(32)} == {"original"}


# --- what is merged ---------------------------------------------------------------------------------------------------


def clusters(vectors: list[list[float]], count: int, noise: list[float]) -> list[list[int]]:
    """The members of each cluster, the strongest peak first."""
    everyone = range(len(vectors))

    def far(a, b):
        return math.sqrt(sum((x - y) ** 2 for x, y in zip(vectors[a], vectors[b], strict=True)) / len(vectors[a]))

    density = []
    for a in everyone:
        near = sorted(far(a, b) for b in everyone)[:count]
        density.append(math.exp(-sum(d * d for d in near) / count) + noise[a])
    widest = max(far(a, b) for a in everyone for b in everyone)
    peak = [
        density[a] * min([far(a, b) for b in everyone if density[b] > density[a]], default=widest) for a in everyone
    ]
    centres = sorted(everyone, key=lambda a: (-peak[a], a))[:count]
    nearest = [
        centres.index(a) if a in centres else min(range(count), key=lambda c: (far(a, centres[c]), c)) for a in everyone
    ]
    return [[a for a in everyone if nearest[a] == c] for c in range(count)]


def mean(vectors: list[list[float]]) -> list[float]:
    return [sum(values) / len(vectors) for values in zip(*vectors, strict=True)]


@quick
@given(st.integers(1, 40), st.data(), seeds)
def test_clusters_are_those_of_the_loops(size, data, seed):
    count, random = data.draw(st.integers(1, size)), seeded(seed)
    vectors = torch.randn(size, 5, generator=random)
    noise = torch.rand(size, generator=random) * (1e-2 if count <= 2 else 1e-6)
    groups = clusters(vectors.double().tolist(), count, noise.double().tolist())
    wanted = torch.tensor([mean([vectors[a].tolist() for a in group]) for group in groups])
    torch.testing.assert_close(cluster_means(vectors, count, noise), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 12, 70, 150])
def test_the_best_dropped_are_merged_into_the_last_dropped_places(size):
    random, method, stage = seeded(size), SparseVLM(seed=4), Stage(3, 0.5)
    hidden, scores = torch.randn(size, 5, generator=random), torch.rand(size, generator=random)
    keep = torch.rand(size, generator=random) < 0.3
    keep[-1] = False
    reduction = method.recycle(stage, hidden, scores, keep)
    dropped = [a for a in range(size) if not keep[a]]
    best = sorted(dropped, key=lambda a: -scores[a])[: int(len(dropped) * 0.3) + 1]
    count = int(len(best) / 10) + 1
    noise = torch.rand(len(best), generator=generator(4, 3)) * 1e-6
    groups = clusters([hidden[a].tolist() for a in best], min(count, len(best)), noise.tolist())
    places = dropped[-len(groups) :]
    assert reduction.keep.nonzero()[:, 0].tolist() == sorted([a for a in range(size) if keep[a]] + places)
    wanted = hidden.clone()
    for place, group in zip(places, groups, strict=True):
        wanted[place] = torch.tensor(mean([hidden[best[a]].tolist() for a in group]))
    torch.testing.assert_close(reduction.features, wanted, rtol=1e-4, atol=1e-5)


def test_counts_of_what_is_merged_follow_the_options():
    hidden, scores = torch.randn(50, 3, generator=seeded(1)), torch.arange(50.0)
    nothing = torch.zeros(50, dtype=torch.bool)
    for options, merged in (({}, 2), ({"recycled": 1.0}, 6), ({"recycled": 1}, 6), ({"cluster": 1}, 16)):
        assert SparseVLM(**options).recycle(Stage(3, 1), hidden, scores, nothing).keep.sum() == merged


def test_nothing_is_merged_where_all_stay():
    keep = torch.ones(4, dtype=torch.bool)
    reduction = SparseVLM().recycle(Stage(3, 4), torch.randn(4, 3), torch.rand(4), keep)
    assert reduction.keep.all()
    assert reduction.features is None


def test_the_seed_decides_between_equal_densities():
    """Two clusters of two mutual neighbours: the noise alone says which peak comes first."""
    hidden = torch.tensor([[0.0], [1.0], [50.0], [51.0]]).repeat(5, 1)
    scores, nothing = torch.ones(20), torch.zeros(20, dtype=torch.bool)
    held = {
        tuple(
            SparseVLM(seed=seed, recycled=0.9).recycle(Stage(3, 1), hidden, scores, nothing).features[-2:, 0].tolist()
        )
        for seed in range(8)
    }
    again = SparseVLM(seed=3, recycled=0.9).recycle(Stage(3, 1), hidden, scores, nothing).features
    assert torch.equal(again, SparseVLM(seed=3, recycled=0.9).recycle(Stage(3, 1), hidden, scores, nothing).features)
    assert len(held) > 1


def test_vectors_that_are_all_alike_make_clusters_with_a_centre_each():
    alike = torch.full((4, 3), 2.0)
    assert torch.equal(cluster_means(alike, 3, torch.arange(4) * 1e-3), alike[:3])


def test_very_large_dimensions_do_not_swallow_small_distances():
    """As in the hidden states of real decoders, where a product of matrices would lose them."""
    vectors = torch.cat([torch.full((30, 1), 2000.0), torch.arange(30.0)[:, None] / 10], 1)
    groups = clusters(vectors.double().tolist(), 3, [a * 1e-6 for a in range(30)])
    wanted = torch.tensor([mean([vectors[a].tolist() for a in group]) for group in groups])
    torch.testing.assert_close(cluster_means(vectors, 3, torch.arange(30) * 1e-6), wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_merged_vectors_have_the_dtype_of_the_others(dtype):
    hidden = torch.randn(20, 4, generator=seeded(2)).to(dtype)
    reduction = SparseVLM().recycle(Stage(3, 1), hidden, torch.arange(20.0), torch.zeros(20, dtype=torch.bool))
    assert reduction.features.dtype == dtype
    assert torch.equal(reduction.features[:-1], hidden[:-1])


def test_vectors_come_on_top_of_the_budgets():
    family = FAMILIES["llava"]
    model = family.model()
    with coremat.apply(model, SparseVLM(budgets=(8, 5, 3))) as session:
        answer(model, family.batch("one"), 1)
    [row] = session.stats
    text = row.prompt_tokens - row.image_tokens
    assert [tokens - text for tokens in row.tokens_per_layer] == [16, 9, 6, 4, 4, 4]
    assert row.cached_per_layer == row.tokens_per_layer
    assert len(row.tokens_per_layer) == LAYERS


# --- what a stage shows of the prompt ---------------------------------------------------------------------------------


class Looks(SparseVLMPlus):
    def score(self, stage, layer):
        views.append(layer.prompt)
        return super().score(stage, layer)


views: list[PromptView] = []


def test_raters_are_chosen_once_and_the_embeddings_let_go_behind_the_last_stage(model):
    views.clear()
    with coremat.apply(model, Looks(budgets=(9, 5, 3))) as session, torch.no_grad():
        model(**batch("left-padded"))
        assert session._stages._whole is None
    assert len(views) == 3
    assert views[0] is views[1] is views[2]
    assert views[0].inputs.shape[:2] == batch("left-padded")["input_ids"].shape


def test_a_view_without_a_prompt_says_what_there_is():
    layer = LayerView(1, torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, 3, dtype=torch.int64))
    with pytest.raises(UnsupportedError, match="prompt is read, which LayerView has not here; there are: none"):
        SparseVLM().score(Stage(1, 2), layer)
