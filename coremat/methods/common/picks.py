"""From scores to the image tokens that stay: of one sequence, on the CPU."""

import torch


def highest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` best tokens, ties to the lower index. scores: [n]. Returns bool [n]."""
    keep = torch.zeros_like(scores, dtype=torch.bool)
    keep[scores.sort(descending=True, stable=True).indices[:count]] = True
    return keep


def best_of_each(scores: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """The best token of every image, ties to the lower index. scores: [n]; image: int64 [n], the image of each token.
    Returns bool [n]."""
    order = scores.sort(descending=True, stable=True).indices
    by_image = order[image[order].sort(stable=True).indices]
    numbers = image[by_image]
    first = torch.ones_like(numbers, dtype=torch.bool)
    first[1:] = numbers[1:] != numbers[:-1]
    best = torch.zeros_like(first)
    best[by_image[first]] = True
    return best


def with_each_image(keep: torch.Tensor, scores: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """`keep`, and the best token of every image that would have lost all."""
    kept = torch.zeros(int(image.max()) + 1, dtype=torch.bool).index_fill_(0, image[keep], True)
    return keep | (best_of_each(scores, image) & ~kept[image])


def best_with_each_image(scores: torch.Tensor, count: int, image: torch.Tensor) -> torch.Tensor:
    """`count` tokens: the best of every image, and the best of the others (one per image where `count` is smaller).

    image: the numbers ascend.
    """
    best = highest(scores, count)
    if image[0] == image[-1]:
        return best
    keep = with_each_image(best, scores, image)
    surplus = int(keep.sum()) - count
    if surplus <= 0:
        return keep
    spare = keep & ~best_of_each(scores, image)
    order = scores.sort(descending=True, stable=True).indices
    return keep.index_fill_(0, order[spare[order]][-surplus:], False)
