"""The rivals once more, slow and obvious: plain Python numbers, one loop per sum.

Each takes nested lists and gives what is held at each place that stays, {place: row}.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

from reference import Matrix, Row, attention, dot, highest

Heads = Sequence[Matrix]  # [tokens][heads][d]


def attention_on_patches(queries: Heads, keys: Heads, patches: int) -> list[list[float]]:
    """[heads][N]: the class token's softmax weights, or the mean over queries of what each patch receives."""
    heads, scaling = len(keys[0]), len(keys[0][0]) ** -0.5
    by_head = [[token[h] for token in keys] for h in range(heads)]
    rows = queries if len(keys) == patches else queries[:1]
    maps = [attention(query, by_head, [True] * len(keys), scaling) for query in rows]
    mean = [[sum(one[h][j] for one in maps) / len(maps) for j in range(len(keys))] for h in range(heads)]
    return [row[len(keys) - patches :] for row in mean]


def cosine(left: Row, right: Row) -> float:
    return dot(left, right) / (math.sqrt(dot(left, left)) * math.sqrt(dot(right, right)))


def quartile(ascending: Row, share: float) -> float:
    at = share * (len(ascending) - 1)
    low, high = ascending[math.floor(at)], ascending[math.ceil(at)]
    return low + (high - low) * (at - math.floor(at))


def middles(size: int, count: int) -> list[int]:
    return [math.floor((part + 0.5) * size / count + 1e-9) for part in range(count)]


def share_out(count: int, sizes: Sequence[int], least: int) -> list[int]:
    """One after the other to where most is missing; who then has less than `least` gets that, and the others again."""
    lowest = [min(least, size) for size in sizes]
    count = min(count, sum(sizes))
    if count <= sum(lowest):
        return _by_quota(count, lowest)
    fixed: dict[int, int] = {}
    while True:
        free = [i for i in range(len(sizes)) if i not in fixed]
        shares = _by_quota(count - sum(fixed.values()), [sizes[i] for i in free])
        low = {i: lowest[i] for i, share in zip(free, shares, strict=True) if share < lowest[i]}
        if not low:
            return [(fixed | dict(zip(free, shares, strict=True)))[i] for i in range(len(sizes))]
        fixed |= low


def _by_quota(count: int, sizes: Sequence[int]) -> list[int]:
    quotas = [Fraction(count * size, sum(sizes)) if size else Fraction(0) for size in sizes]
    shares = [math.floor(quota) for quota in quotas]
    while sum(shares) < count:
        missing = [quota - share for quota, share in zip(quotas, shares, strict=True)]
        shares[missing.index(max(missing))] += 1
    return shares


def at(keep: Sequence[bool]) -> list[int]:
    return [place for place, stays in enumerate(keep) if stays]


# --- PruMerge -----------------------------------------------------------------------------------------------------


def prumerge(
    features: Matrix,
    queries: Heads,
    keys: Heads,
    budget: int | None,
    plus: bool,
    neighbours: int = 32,
    fence: float = 1.5,
) -> dict[int, Row]:
    """budget: None for the rule's own count, which the extra token comes on top of."""
    wide = [[[x for head in token for x in head] for token in rows] for rows in (queries, keys)]
    weights = attention_on_patches([[q] for q in wide[0]], [[k] for k in wide[1]], len(features))[0]
    own_keys = wide[1][-len(features) :]
    extra = budget is None or 1 < budget < len(features)
    count = None if budget is None else budget - extra
    chosen = _outliers(weights, plus, fence) if count is None else _fixed(weights, count, plus)
    if len(chosen) == len(features):
        return dict(enumerate(features))
    held = {place: _with_neighbours(place, features, own_keys, weights, neighbours) for place in chosen}
    dropped = [place for place in range(len(features)) if place not in chosen]
    if extra:
        held[dropped[-1]] = [sum(weights[j] * features[j][c] for j in dropped) for c in range(len(features[0]))]
    return held


def _outliers(weights: Row, plus: bool, fence: float) -> list[int]:
    low, high = (quartile(sorted(weights), share) for share in (0.25, 0.75))
    count = max(1, sum(weight > high + fence * (high - low) for weight in weights))
    chosen = set(at(highest(weights, count)))
    if plus:
        chosen |= set(range(0, len(weights) - 1, max(1, int(int(len(weights) / count) / 3))))
    return sorted(chosen)


def _fixed(weights: Row, count: int, plus: bool) -> list[int]:
    spaced = count // 2 if plus else 0
    chosen = at(highest(weights, count - spaced))
    left = [place for place in range(len(weights)) if place not in chosen]
    return sorted(chosen + [left[i] for i in middles(len(left), spaced)])


def _with_neighbours(place: int, features: Matrix, keys: Matrix, weights: Row, count: int) -> list[float]:
    others = [j for j in range(len(keys)) if j != place]
    nearest = sorted(others, key=lambda j: -cosine(keys[place], keys[j]))[:count]
    return [x + sum(weights[j] * features[j][c] for j in nearest) for c, x in enumerate(features[place])]


# --- VisionZip ----------------------------------------------------------------------------------------------------


def visionzip(
    features: Matrix,
    cls: Row | None,
    queries: Heads,
    keys: Heads,
    budget: int,
    pair: tuple[int, int] = (27, 5),
) -> dict[int, Row]:
    """pair: dominant and contextual tokens, as they share the budget."""
    patches = len(features)
    if budget == patches:
        return dict(enumerate(features))
    contextual = math.floor(Fraction(budget * pair[1], sum(pair)))
    by_head = attention_on_patches(queries, keys, patches)
    total = [sum(row[j] for row in by_head) for j in range(patches)]
    own = cls if budget > contextual else None
    dominant = at(highest(total, budget - contextual - (own is not None)))
    rest = [j for j in range(patches) if j not in dominant]
    targets = [rest[number * (len(rest) // contextual)] for number in range(contextual)]
    others = [j for j in rest if j not in targets]
    held = {j: features[j] for j in dominant} | _contextual(targets, others, features, _mean_heads(keys)[-patches:])
    return held if own is None else held | {others[0]: own}


def _mean_heads(keys: Heads) -> list[list[float]]:
    return [[sum(head[i] for head in token) / len(token) for i in range(len(token[0]))] for token in keys]


def _contextual(targets: list[int], others: list[int], features: Matrix, metric: Matrix) -> dict[int, Row]:
    groups: dict[int, list[int]] = {target: [] for target in targets}
    for j in others if targets else ():
        groups[max(targets, key=lambda target: cosine(metric[target], metric[j]))].append(j)
    return {
        target: [x + sum(features[j][c] for j in group) / max(1, len(group)) for c, x in enumerate(features[target])]
        for target, group in groups.items()
    }


# --- after the projector ------------------------------------------------------------------------------------------


def divprune(embeddings: Matrix, budget: int) -> list[int]:
    """The places in the order in which they are chosen."""
    size = range(len(embeddings))
    apart = [[1 - cosine(embeddings[i], embeddings[j]) for j in size] for i in size]
    chosen = [max(size, key=lambda i: min((apart[i][j] for j in size if j != i), default=0.0))]
    while len(chosen) < budget:
        left = [i for i in size if i not in chosen]
        chosen.append(max(left, key=lambda i: min(apart[i][j] for j in chosen)))
    return chosen


Grids = Sequence[tuple[int, int]]


def uniform(grids: Grids, count: int) -> list[int]:
    sizes, places = [height * width for height, width in grids], []
    for number, (grid, share) in enumerate(zip(grids, share_out(count, sizes, 0), strict=True)):
        places += [sum(sizes[:number]) + place for place in spread(*grid, share)]
    return places


def spread(height: int, width: int, budget: int) -> list[int]:
    if not budget:
        return []
    best = None
    for rows in range(1, height + 1):
        if rows > budget or rows * width < budget:
            continue
        down, across = height / rows, width * rows / budget
        shape = max(down / across, across / down)
        if best is None or shape < best[0] - 1e-9:
            best = shape, rows
    assert best is not None
    rows, places = best[1], []
    for number, row in enumerate(middles(height, rows)):
        own = math.floor((number + 1) * budget / rows + 1e-9) - math.floor(number * budget / rows + 1e-9)
        places += [row * width + column for column in middles(width, own)]
    return places


def average_pooling(embeddings: Matrix, grids: Grids, pooled: Grids) -> dict[int, Row]:
    """pooled: the grid that each of `grids` is pooled to; (0, 0) where all its tokens go."""
    held, before = {}, 0
    for grid, (rows, columns) in zip(grids, pooled, strict=True):
        own = embeddings[before : before + grid[0] * grid[1]]
        held |= {before + place: row for place, row in pool(own, rows, columns, grid).items()}
        before += len(own)
    return held


def pool(embeddings: Matrix, rows: int, columns: int, grid: tuple[int, int]) -> dict[int, Row]:
    height, width = grid
    held = {}
    for r, row in enumerate(middles(height, rows)):
        for c, column in enumerate(middles(width, columns)):
            cell = [
                embeddings[y * width + x]
                for y in range(r * height // rows, -(-(r + 1) * height // rows))
                for x in range(c * width // columns, -(-(c + 1) * width // columns))
            ]
            held[row * width + column] = [sum(values) / len(cell) for values in zip(*cell, strict=True)]
    return held
