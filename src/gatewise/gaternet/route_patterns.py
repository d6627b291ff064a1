"""Routes from a trained network: clusters of images, and the filters that matter for each cluster."""

# pyright: basic

import torch
from torch import Tensor

_ROUNDS = 20  # of k-means


def clusters(features: Tensor, count: int) -> Tensor:
    """Return the cluster of each image by k-means with equal cluster sizes: (N, F) -> (N,).

    Images join their nearest centre in the order of how much they prefer it to the second nearest; a full cluster
    takes no more images. The first centres are spread by farthest-point selection.

    Args:
        features: one row per image.
        count: number of clusters K.

    >>> clusters(torch.tensor([[0.0], [0.1], [5.0], [5.1]]), 2)
    tensor([0, 0, 1, 1])
    """
    features = (features - features.mean(0)) / features.std(0, correction=0).clamp(min=1e-6)
    centres = features[_spread(features, count)]
    assigned = _balanced(torch.cdist(features, centres))
    for _ in range(_ROUNDS):
        centres = torch.stack([features[assigned == number].mean(0) for number in range(count)])
        before, assigned = assigned, _balanced(torch.cdist(features, centres))
        if torch.equal(before, assigned):
            break
    return assigned


def _spread(features: Tensor, count: int) -> list[int]:
    """Return the indices of `count` images that are far from each other; the first is the nearest to the mean."""
    chosen = [int(features.norm(dim=1).argmin())]
    while len(chosen) < count:
        chosen.append(int(torch.cdist(features, features[chosen]).amin(1).argmax()))
    return chosen


def _balanced(distances: Tensor) -> Tensor:
    """Assign images to clusters of equal size: (N, K) distances -> (N,)."""
    images, count = distances.shape
    if count == 1:
        return torch.zeros(images, dtype=torch.long)
    nearest = distances.sort(1)
    order = (nearest.values[:, 1] - nearest.values[:, 0]).argsort(descending=True, stable=True)
    room = [(images + number) // count for number in range(count)]
    assigned = torch.zeros(images, dtype=torch.long)
    preferences: list[list[int]] = nearest.indices.tolist()
    for image in order.tolist():
        cluster = next(number for number in preferences[image] if room[number])
        room[cluster] -= 1
        assigned[image] = cluster
    return assigned


def importance_by_cluster(importance: Tensor, assigned: Tensor, count: int) -> Tensor:
    """Return the mean importance of each gate over the images of each cluster: (N, gates), (N,) -> (K, gates)."""
    return torch.stack([importance[assigned == number].mean(0) for number in range(count)])


def sensitivity(output: Tensor, gates: Tensor) -> Tensor:
    """Return how much each gate changes each image's outputs, to first order: (N, ...), (N, gates) -> (N, gates).

    It is (d(s . o) / dg)^2 for random signs s of the outputs o. Its expectation is sum_i (do_i / dg)^2, the squared
    change of the outputs if the gate is closed.

    Args:
        output: the outputs, computed from `gates`.
        gates: all ones, with gradient.
    """
    signs = torch.randint(0, 2, output.shape, device=output.device).to(output) * 2 - 1
    (gradient,) = torch.autograd.grad((output * signs).sum(), gates)
    return gradient.square()
