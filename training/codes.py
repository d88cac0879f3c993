"""A codebook without training: principal components of patches, then k-means.

Learnt jointly from nothing, a small VQ collapses to few dimensions and loses hues. Patches of f x f pixels, projected
on their principal components and half whitened (so that colour leads but does not drown form), make a latent in which
every code is used from the first step; encoder and decoder learn to speak it.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CODE_STD = 0.67  # of a channel of the codebook: Crowson's steps of 0.1 are then 0.15 standard deviations


def sample_patches(pictures: np.ndarray, f: int, count: int, seed: int) -> Tensor:
    """`count` patches at random places of pictures (N, H, W, 3) uint8 -> (count, 3*f*f) in [-1, 1]."""
    rng = np.random.default_rng(seed)
    at = np.sort(rng.integers(len(pictures), size=count))
    side = pictures.shape[1]
    rows, columns = rng.integers(side - f + 1, size=(2, count))
    patches = np.stack([pictures[n, r : r + f, c : c + f] for n, r, c in zip(at, rows, columns, strict=True)])
    return torch.from_numpy(patches).permute(0, 3, 1, 2).flatten(1).float() / 127.5 - 1


def principal(patches: Tensor, dims: int) -> tuple[Tensor, Tensor]:
    """The half-whitened principal projection of patches (M, D): weight (dims, D) and mean (D,)."""
    mean = patches.mean(0)
    centred = patches - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(patches))
    values, vectors = values.flip(0)[:dims], vectors.flip(1)[:, :dims]
    weight = vectors.T / values.clamp(min=1e-8).pow(0.25)[:, None]
    return weight * (CODE_STD / values.sqrt().mean().sqrt()), mean


def kmeans(points: Tensor, k: int, rounds: int, seed: int, begin: Tensor | None = None) -> Tensor:
    """Lloyd's k-means with empty cells reseeded: points (M, C) -> centres (k, C), `begin` moved on where given."""
    generator = torch.Generator().manual_seed(seed)
    centres = (points[torch.randperm(len(points), generator=generator)[:k]] if begin is None else begin).clone()
    for _ in range(rounds):
        nearest = assign(points, centres)
        count = torch.zeros(k).index_add_(0, nearest, torch.ones(len(points)))
        total = torch.zeros_like(centres).index_add_(0, nearest, points)
        empty = count == 0
        centres = total / count.clamp(min=1)[:, None]
        centres[empty] = points[torch.randint(len(points), (int(empty.sum()),), generator=generator)]
    return centres


def assign(points: Tensor, centres: Tensor) -> Tensor:
    """The nearest centre of each point: (M, C), (k, C) -> (M,)."""
    half = -centres.pow(2).sum(1) / 2
    with torch.autocast(points.device.type, enabled=False):  # bfloat16 does not tell neighbours apart
        return torch.cat([torch.addmm(half, part, centres.T).argmax(1) for part in points.float().split(4096)])


def nearest(z: Tensor, codebook: Tensor) -> Tensor:
    """The nearest codes of latents: (B, C, h, w), (k, C) -> (B, h, w)."""
    return assign(z.permute(0, 2, 3, 1).flatten(0, 2), codebook).view(z.shape[0], *z.shape[2:])


def project(images: Tensor, weight: Tensor, mean: Tensor, f: int) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] -> latent (B, C, h, w): the projection of each f x f patch."""
    dims = len(weight)
    return F.conv2d(images, weight.view(dims, 3, f, f), -(weight @ mean), stride=f)
