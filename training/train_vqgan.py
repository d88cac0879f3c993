"""The VQGAN of the embedded pair: taming's encoder and decoder around a codebook of patches.

The decoder learns to paint scenes from codes of which a random share is wrong, so that it mends grids that no picture
has: most of what guidance tries on its way then looks like some scene. The encoder learns the patch projection that the codes
stand for, so that pictures to start from go the usual way.
"""

from __future__ import annotations

import contextlib
import io

import lightning
import numpy as np
import torch
import torch.nn.functional as F
from taming.modules.diffusionmodules.model import Decoder, Encoder
from torch import Tensor, nn

from .codes import assign, kmeans, principal, project, sample_patches


class Painter(nn.Module):
    """Encoder, codebook and decoder under the names that CompVis' checkpoints have."""

    def __init__(self, ddconfig: dict, n_embed: int, embed_dim: int):
        super().__init__()
        with contextlib.redirect_stdout(io.StringIO()):
            self.encoder, self.decoder = Encoder(**ddconfig), Decoder(**ddconfig)
        self.quant_conv = nn.Conv2d(ddconfig["z_channels"], embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, ddconfig["z_channels"], 1)
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(n_embed, embed_dim)

    def decode(self, z_q: Tensor) -> Tensor:
        """Latent (B, C, h, w) -> image (B, 3, H, W), nominally in [-1, 1]."""
        return self.decoder(self.post_quant_conv(z_q))

    def encode(self, image: Tensor) -> Tensor:
        """Image (B, 3, H, W) in [-1, 1] -> latent (B, C, h, w), before the nearest codes are taken."""
        return self.quant_conv(self.encoder(image))

    def nearest(self, z: Tensor) -> Tensor:
        """Latent (B, C, h, w) -> codes (B, h, w)."""
        codes = assign(z.permute(0, 2, 3, 1).flatten(0, 2), self.quantize.embedding.weight.detach())
        return codes.view(z.shape[0], *z.shape[2:])

    def embed(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w) -> z_q (B, C, h, w)."""
        return self.quantize.embedding(codes).permute(0, 3, 1, 2)


def corrupt(codes: Tensor, most: float, k: int) -> Tensor:
    """Codes (B, h, w) of which, for every other picture, a share up to `most` is drawn anew from the batch or all k."""
    share = torch.rand(len(codes), 1, 1, device=codes.device) * most
    share[::2] = 0
    wrong = torch.rand(codes.shape, device=codes.device) < share
    anything = torch.randint(k, codes.shape, device=codes.device)
    mixed = codes.flatten()[torch.randperm(codes.numel(), device=codes.device)].view_as(codes)
    replacement = torch.where(torch.rand(codes.shape, device=codes.device) < 0.5, anything, mixed)
    return torch.where(wrong, replacement, codes)


class Crops(torch.utils.data.IterableDataset):
    """Random crops (B, 3, S, S) in [-1, 1], step by step from one seed; every fourth batch is whole pictures."""

    def __init__(self, pictures: np.ndarray, batch: int, crop: int, seed: int, skip: int = 0):
        self.pictures, self.batch, self.crop, self.seed, self.skip = pictures, batch, crop, seed, skip

    def __iter__(self):
        step, side = self.skip, self.pictures.shape[1]
        while True:
            rng = np.random.default_rng((self.seed, step))
            size = side if step % 4 == 3 else self.crop
            count = max(1, self.batch * self.crop**2 // size**2)
            places = zip(rng.integers(len(self.pictures), size=count), *rng.integers(side - size + 1, size=(2, count)),
                         strict=True)  # fmt: skip
            crops = np.stack([self.pictures[n, r : r + size, c : c + size] for n, r, c in places])
            flipped = rng.random(count) < 0.5
            crops[flipped] = crops[flipped, :, ::-1]
            yield torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 127.5 - 1
            step += 1


class PaintersTraining(lightning.LightningModule):
    """Decoder on codes of the patch projection, and encoder on the projection itself.

    Args:
        ddconfig, n_embed, embed_dim: as in CompVis' configurations.
        lr: Adam's, at the top of a warm-up of 50 steps and a cosine descent over `steps`.
        wrong: the largest share of codes that is replaced.
    """

    def __init__(self, ddconfig: dict, n_embed: int, embed_dim: int, lr: float, steps: int, wrong: float):
        super().__init__()
        self.save_hyperparameters()
        self.painter = Painter(ddconfig, n_embed, embed_dim)
        self.f = 2 ** (len(ddconfig["ch_mult"]) - 1)
        self.register_buffer("weight", torch.zeros(embed_dim, 3 * self.f**2))
        self.register_buffer("mean", torch.zeros(3 * self.f**2))

    def fit_codes(self, pictures: np.ndarray, patches: int, rounds: int, seed: int) -> None:
        """Set projection and codebook from pictures; see `codes.py`."""
        points = sample_patches(pictures, self.f, patches, seed)
        self.weight, self.mean = principal(points, len(self.weight))
        points = (points - self.mean) @ self.weight.T
        self.painter.quantize.embedding.weight.data = kmeans(points, len(self.painter.quantize.embedding.weight), rounds, seed)
        self.painter.quantize.embedding.weight.requires_grad_(False)

    def training_step(self, images: Tensor, step: int) -> Tensor:
        z = project(images.float(), self.weight, self.mean, self.f)
        codes = corrupt(self.painter.nearest(z), self.hparams.wrong, self.hparams.n_embed)
        painted = self.painter.decode(self.painter.embed(codes)).float()
        loss = reconstruction(painted, images)
        self.log("paint", loss, prog_bar=True)
        if self.hparams.get("encoder", True):
            distance = F.mse_loss(self.painter.encode(images).float(), z)
            self.log("encode", distance, prog_bar=True)
            loss = loss + distance
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.Adam([p for p in self.parameters() if p.requires_grad], self.hparams.lr, (0.9, 0.99))
        steps = self.hparams.steps
        rate = lambda s: min((s + 1) / 50, 0.02 + 0.98 * (0.5 + 0.5 * np.cos(np.pi * min(s / steps, 1))))  # noqa: E731
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, rate), "interval": "step"}]


def reconstruction(painted: Tensor, image: Tensor) -> Tensor:
    """Mean absolute error of pixels and, for edges, of their differences."""
    loss = F.l1_loss(painted, image)
    for axis in (2, 3):
        loss = loss + F.l1_loss(painted.diff(dim=axis), image.diff(dim=axis))
    return loss
