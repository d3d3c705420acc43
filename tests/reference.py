"""The method's equations once more, slow and obvious: plain Python numbers, one loop per sum, exact fractions."""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

Row = Sequence[float]
Matrix = Sequence[Row]


def ceil_of(share: float, number: int) -> int:
    return math.ceil(Fraction(str(share)) * number)


def floor_of(share: float, number: int) -> int:
    return math.floor(Fraction(str(share)) * number)


def activated(row: Row) -> set[int]:
    """Gamma(x)."""
    return {n for n, value in enumerate(row) if value > 0}


def token_core_neurons(row: Row, alpha: float) -> set[int]:
    """C_alpha(x), eq. 2."""
    active = sorted(activated(row), key=lambda n: (-row[n], n))
    return set(active[: ceil_of(alpha, len(active))])


def votes(rows: Matrix, alpha: float, voters: Sequence[bool]) -> list[int]:
    """f(n), eq. 4."""
    counts = [0] * len(rows[0])
    for row, says in zip(rows, voters, strict=True):
        for n in token_core_neurons(row, alpha) if says else ():
            counts[n] += 1
    return counts


def core_neurons(counts: Sequence[int], beta: float) -> list[int]:
    """C, eq. 3, ascending."""
    ranked = sorted(range(len(counts)), key=lambda n: (-counts[n], n))
    return sorted(ranked[: floor_of(beta, len(counts))])


def core_neuron_counts(rows: Matrix, core: Sequence[int]) -> list[int]:
    """c_m, eq. 5."""
    return [len(activated(row) & set(core)) for row in rows]


def chord_distances(descending: Row, signed: bool) -> list[Fraction]:
    """Distance of each point to the chord, times the chord's length; with `signed`, positive below it only."""
    curve = [Fraction(value) for value in descending]
    last = len(curve) - 1
    above = [last * (s - curve[0]) - i * (curve[-1] - curve[0]) for i, s in enumerate(curve)]
    return [-d if signed else abs(d) for d in above]


def knee(descending: Row, signed: bool = False) -> int:
    """Largest distance, ties to the lower index."""
    distances = chord_distances(descending, signed)
    return distances.index(max(distances))


def above_knee(scores: Row, signed: bool = False) -> list[bool]:
    """Eq. 6."""
    descending = sorted(scores, reverse=True)
    threshold = descending[knee(descending, signed)]
    return [score >= threshold for score in scores]


def highest(scores: Row, count: int) -> list[bool]:
    ranked = sorted(range(len(scores)), key=lambda m: (-scores[m], m))
    return [m in ranked[:count] for m in range(len(scores))]


def one_per_image(keep: Sequence[bool], scores: Row, image: Sequence[int]) -> list[bool]:
    kept = list(keep)
    for number in set(image):
        own = [m for m in range(len(image)) if image[m] == number]
        if not any(keep[m] for m in own):
            kept[max(own, key=lambda m: (scores[m], -m))] = True
    return kept


def best_with_each_image(scores: Row, count: int, image: Sequence[int]) -> list[bool]:
    """The best of every image first, then the best of the others, up to the count."""
    kept = one_per_image([False] * len(scores), scores, image)
    for m in sorted(range(len(scores)), key=lambda m: (-scores[m], m)):
        if sum(kept) < count:
            kept[m] = True
    return kept


def dot(left: Row, right: Row) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


def attention(query: Matrix, keys: Sequence[Matrix], valid: Sequence[bool], scaling: float) -> list[list[float]]:
    """Softmax weights of one query. query: [heads][d]; keys: [kv_heads][T][d]. Returns [heads][T]."""
    weights = []
    for head, own in enumerate(query):
        shared = keys[head * len(keys) // len(query)]
        logits = [scaling * dot(own, key) for key in shared]
        powers = [math.exp(x - max(logits)) if real else 0.0 for x, real in zip(logits, valid, strict=True)]
        weights.append([power / sum(powers) for power in powers])
    return weights


def contribution(weights: Matrix, values: Sequence[Matrix], output: Matrix, token: int) -> list[float]:
    """u_m = sum_h a_mh v_mh W_O,h, the columns of W_O in the order of the heads."""
    mixed: list[float] = []
    for head, row in enumerate(weights):
        value = values[head * len(values) // len(weights)][token]
        mixed += [row[token] * v for v in value]
    return [dot(out, mixed) for out in output]


def attention_output(weights: Matrix, values: Sequence[Matrix], output: Matrix) -> list[float]:
    """o_M, eq. 7."""
    parts = [contribution(weights, values, output, m) for m in range(len(weights[0]))]
    return [sum(part[i] for part in parts) for i in range(len(output))]


def projection_values(weights: Matrix, values: Sequence[Matrix], output: Matrix) -> list[float]:
    """p_m = |u_m| cos(angle(u_m, o_M)), eq. 8."""
    total = attention_output(weights, values, output)
    size = math.sqrt(dot(total, total))
    return [dot(contribution(weights, values, output, m), total) / size for m in range(len(weights[0]))]


def ffn(
    x: Row,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
    neurons: Sequence[int],
    act: Callable[[float], float],
    biases: Sequence[Row] | None = None,
) -> list[float]:
    """down[:, C] (act(gate[C] x) * (up[C] x)) of one token; biases of gate, up and down."""
    on_gate, on_up, on_down = biases or ([0.0] * len(gate), [0.0] * len(up), [0.0] * len(down))
    out = list(on_down)
    for n in neurons:
        active = act(dot(gate[n], x) + on_gate[n]) * (dot(up[n], x) + on_up[n])
        for i in range(len(out)):
            out[i] += down[i][n] * active
    return out
