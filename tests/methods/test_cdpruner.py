"""CDPruner against determinants: each pick is the one whose kernel, with those before, has the largest."""

from fractions import Fraction

import pytest
import reference_rivals
import torch
from hypothesis import given
from hypothesis import strategies as st
from image_views import kept
from strategies import quick, seeded, seeds
from tiny_clip import save_tiny_clip

import coremat
from coremat.errors import ConfigError
from coremat.methods.cdpruner import LEAST, CDPruner, cdpruner, greedy_map, kernel
from coremat.methods.views import ImageView, Question
from coremat.testing import check_method
from coremat.testing.answers import answer
from coremat.testing.families import FAMILIES
from coremat.testing.families.llava import SIDE, VIEW
from coremat.testing.invariants import tiny


def determinant(rows):
    """By elimination, in fractions: exact for the numbers that there are."""
    rows = [[Fraction(value) for value in row] for row in rows]
    product = Fraction(1)
    for step in range(len(rows)):
        pivot = next((r for r in range(step, len(rows)) if rows[r][step]), None)
        if pivot is None:
            return Fraction(0)
        if pivot != step:
            rows[step], rows[pivot], product = rows[pivot], rows[step], -product
        product *= rows[step][step]
        for below in range(step + 1, len(rows)):
            ratio = rows[below][step] / rows[step][step]
            rows[below] = [a - ratio * b for a, b in zip(rows[below], rows[step], strict=True)]
    return product


def greedy_by_determinants(matrix, count):
    chosen = []
    for _ in range(count):
        others = [j for j in range(len(matrix)) if j not in chosen]
        gains = {j: determinant([[matrix[a][b] for b in [*chosen, j]] for a in [*chosen, j]]) for j in others}
        chosen.append(max(others, key=lambda j: (gains[j], -j)))
    return sorted(chosen)


def kernel_by_loops(features, relevance):
    low, high = min(relevance), max(relevance)
    scaled = [(one - low + LEAST) / (high - low + LEAST) for one in relevance]
    size = range(len(features))
    return [[scaled[i] * reference_rivals.cosine(features[i], features[j]) * scaled[j] for j in size] for i in size]


@quick
@given(st.integers(1, 12), seeds, st.data())
def test_picks_are_those_of_the_largest_determinants(size, seed, data):
    random = seeded(seed)
    features, relevance = torch.randn(size, 16, generator=random), torch.randn(size, generator=random)
    count = data.draw(st.integers(1, min(size, 6)))
    expected = greedy_by_determinants(kernel_by_loops(features.tolist(), relevance.tolist()), count)
    assert kept(cdpruner(features, relevance, count)) == expected


@quick
@given(st.integers(1, 8), seeds)
def test_the_kernel_is_that_of_the_loops(size, seed):
    random = seeded(seed)
    features, relevance = torch.randn(size, 5, generator=random), torch.randn(size, generator=random)
    expected = torch.tensor(kernel_by_loops(features.tolist(), relevance.tolist()))
    torch.testing.assert_close(kernel(features, relevance), expected, atol=1e-5, rtol=1e-4)


def test_relevance_first_and_then_what_differs():
    """0 and 1 are alike and most relevant, 2 stands across with less, 3 across too with least."""
    features = torch.tensor([[1.0, 0, 0], [1, 0.01, 0], [0, 1, 0], [0, 0, 1]])
    relevance = torch.tensor([1.0, 0.9, 0.5, 0.1])
    assert [kept(cdpruner(features, relevance, count)) for count in (1, 2, 3)] == [[0], [0, 2], [0, 1, 2]]


def test_equal_relevance_leaves_the_diverse_and_ties_go_to_the_first():
    features = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    assert kept(cdpruner(features, torch.zeros(4), 2)) == [0, 2]


@pytest.mark.parametrize("count", [1, 3, 8, 9])
def test_no_token_is_taken_twice_where_all_are_alike(count):
    found = cdpruner(torch.ones(9, 2), torch.zeros(9), count)
    assert int(found.sum()) == count
    assert bool(found[0])


def test_more_than_the_rank_is_given_too():
    features = torch.randn(40, 3, generator=seeded(1))
    assert int(cdpruner(features, torch.rand(40, generator=seeded(2)), 17).sum()) == 17
    assert torch.isfinite(kernel(features, torch.zeros(40))).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_full(dtype):
    features = (3 + torch.randn(30, 16, generator=seeded(3))).to(dtype)
    relevance = torch.rand(30, generator=seeded(4))
    expected = greedy_by_determinants(kernel_by_loops(features.tolist(), relevance.tolist()), 5)
    assert kept(cdpruner(features, relevance, 5)) == expected


def test_the_factor_grows_step_by_step_to_that_of_the_chosen():
    """The same set from scratch: a random positive definite kernel with entries far from a product of two."""
    root = torch.randn(12, 12, generator=seeded(6), dtype=torch.float64)
    matrix = root @ root.T
    assert kept(greedy_map(matrix, 6)) == greedy_by_determinants(matrix.tolist(), 6)


# --- where relevance comes from -----------------------------------------------------------------------------------


def test_without_a_text_tower_the_embeddings_least_like_the_question_count():
    """The mean of the question is (3, 0); its last token alone would choose 3."""
    features = torch.tensor([[0.0, 1], [1, 0.1], [-1, 0], [-0.9, 1]])
    question = Question({"embeddings": lambda: torch.tensor([[5.0, 1], [1, -1]])})
    assert kept(CDPruner().before_decoder(ImageView(features, question=question), 1).keep) == [2]


def test_a_prompt_without_text_leaves_the_diverse():
    features = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    question = Question({"embeddings": lambda: torch.zeros(0, 2)})
    assert kept(CDPruner().before_decoder(ImageView(features, question=question), 2).keep) == [0, 2]


class MadeTower:
    def patches(self, features):
        return features

    def text(self, text):
        return torch.tensor([[float(word) for word in text.split()], [0.0, 1]])


def test_with_a_text_tower_the_negated_mean_over_pieces_counts_and_projected_features_differ():
    """Cosines with the pieces (1, 0) and (0, 1): 1 + 0, -1 + 0, 0 - 1, 0 + 1; the least are 1 and 2. Projected, 1 and 2
    are one, and 3 stands across."""
    features = torch.tensor([[1.0, 0], [-1, 0], [0, -1], [0, 1]])
    projected = {1: [[1.0, 0]] * 3 + [[0.0, 1]]}
    seen = []

    def project(own):
        seen.append(own)
        return torch.tensor(projected[1])

    view = ImageView(features, state=MadeTower(), question=Question({"text": lambda: "1 0"}), project=project)
    method = CDPruner(text_tower="any")
    assert kept(method.before_projector(view, 1).keep) == [1]
    assert kept(method.before_projector(view, 2).keep) == [1, 3]
    assert seen[0] is features


def test_it_chooses_at_one_place():
    for method, place, other in (
        (CDPruner(), "before_decoder", "before_projector"),
        (CDPruner(text_tower="any"), "before_projector", "before_decoder"),
    ):
        assert method.takes(place)
        assert not method.takes(other)
        assert not method.takes("score")


def picks(method, questions=None):
    family = FAMILIES["llava"]
    with coremat.apply(tiny(family), method) as session:
        session.questions = questions
        answer(tiny(family), family.batch("an image each"), 1)
        return [row.kept for row in session.stats]


def test_the_text_tower_reads_the_question_of_each_sequence(tmp_path):
    method = CDPruner(tokens=3, text_tower=save_tiny_clip(tmp_path, SIDE))
    first, second = picks(method, ["30 31", "30 31"]), picks(method, ["199 3", "30 31"])
    assert first[1] == second[1]
    assert first[0] != second[0]
    assert picks(CDPruner(tokens=3)) != first
    with pytest.raises(ConfigError, match=r"set session\.questions to one text per sequence"):
        picks(method)


@pytest.mark.parametrize("tokens", [1, 5, 0.5])
def test_every_invariant_holds(tokens):
    findings = list(check_method(CDPruner(tokens=tokens), ["llava", "llava_next"]))
    assert not [str(finding) for finding in findings if not finding.ok]


@pytest.mark.parametrize("name", ["llava", "llava_next"])
def test_every_invariant_holds_with_a_text_tower(name, tmp_path):
    folder = save_tiny_clip(tmp_path, SIDE if name == "llava" else VIEW)
    findings = list(check_method(CDPruner(tokens=6, text_tower=folder), [name]))
    assert not [str(finding) for finding in findings if not finding.ok]


def test_no_step_reads_a_value_on_the_host():
    """Tensors without values: whatever would wait for one raises."""
    features, relevance = torch.empty(9, 4, device="meta"), torch.empty(9, device="meta")
    assert cdpruner(features, relevance, 5).shape == (9,)
