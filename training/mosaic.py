"""Pictures as mosaics of the patches that codes stand for, and how a direction in pictures becomes one in latents."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .codes import nearest, project

EVEN = 0.75  # 0: latents follow pictures by the chain rule; 1: all their channels are equally quick


def even(adds: Tensor, weight: Tensor) -> Tensor:
    """The patches (C, D) by which a direction in pictures becomes one in latents.

    By the chain rule these are `adds`, what one of a channel adds to the picture: then the channels of detail, of which
    little is seen, go up to thirty times as slowly as the one of brightness, and are never there when a run ends. By
    `weight`, the projection, all go alike, but what is mere noise in the direction goes as fast. EVEN lies in between.
    """
    swift = (weight.norm(dim=1) / adds.norm(dim=1)) ** EVEN
    return adds * (swift / swift.square().mean().sqrt())[:, None]


def uneven(leads: Tensor) -> Tensor:
    """The projection (C, D) of which `even` made these patches: its rows stand upright on each other."""
    long = leads.norm(dim=1)
    relative = long ** (1 / (2 * EVEN - 1))
    length = relative / (2 * (relative ** (2 * EVEN)).square().mean().sqrt())
    return leads * (length / long)[:, None]


class Mosaic(nn.Module):
    """The painter without its decoder: each code as the patch that it stands for."""

    def __init__(self, painting):
        super().__init__()
        self.f = painting.f
        self.register_buffer("weight", painting.weight.clone(), persistent=False)
        self.register_buffer("mean", painting.mean.clone(), persistent=False)
        self.register_buffer("codebook", painting.painter.quantize.embedding.weight.detach().clone(), persistent=False)
        self.register_buffer("adds", torch.linalg.pinv(self.weight).T / 2, persistent=False)  # of one of a channel
        self.register_buffer("leads", even(self.adds, self.weight), persistent=False)
        self.register_buffer("patches", self.codebook @ self.adds + self.mean / 2 + 0.5, persistent=False)

    def latent(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] -> z (B, C, h, w), before it is quantised."""
        with torch.autocast(images.device.type, enabled=False):
            return project(images.float() * 2 - 1, self.weight, self.mean, self.f)

    def codes(self, z: Tensor) -> Tensor:
        """z (B, C, h, w) -> the nearest codes (B, h, w)."""
        return nearest(z, self.codebook)

    def back(self, grad: Tensor) -> Tensor:
        """Direction in images (B, 3, H, W) -> direction in their latents (B, C, h, w)."""
        return F.conv2d(grad, self.leads.view(-1, 3, self.f, self.f), stride=self.f)

    def forward(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w) -> images (B, 3, H, W) in [0, 1]."""
        B, h, w = codes.shape
        patches = self.patches.clamp(0, 1).view(-1, 3, self.f, self.f)[codes]
        return patches.permute(0, 3, 1, 4, 2, 5).reshape(B, 3, h * self.f, w * self.f)
