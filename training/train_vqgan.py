"""The VQGAN of the embedded pair: taming's encoder and decoder around a codebook of patches.

The decoder learns to paint scenes from codes of which a random share is wrong, so that it mends grids that no picture
has: most of what guidance tries on its way then looks like some scene. A critic of patches keeps edges. The encoder
learns the patch projection that the codes stand for, so that pictures to start from go the usual way.
"""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from taming.modules.diffusionmodules.model import Decoder, Encoder
from torch import Tensor, nn

from .codes import CODE_STD, kmeans, nearest, principal, project, sample_patches


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
        return nearest(z, self.quantize.embedding.weight.detach())

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


def jitter(z: Tensor, most: float) -> Tensor:
    """Latents (B, C, h, w), for every other picture moved by noise of up to `most` standard deviations of a channel."""
    size = torch.rand(len(z), 1, 1, 1, device=z.device) * most * CODE_STD
    size[1::2] = 0
    return z + size * torch.randn_like(z)


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


class Critic(nn.Sequential):
    """Tells patches of about 30 pixels of real scenes from painted (PatchGAN, arXiv 1611.07004, spectrally normed)."""

    def __init__(self, width: int = 48):
        norm, relu = nn.utils.parametrizations.spectral_norm, nn.LeakyReLU(0.2)
        super().__init__(
            norm(nn.Conv2d(3, width, 4, 2, 1)), relu,
            norm(nn.Conv2d(width, 2 * width, 4, 2, 1)), relu,
            norm(nn.Conv2d(2 * width, 2 * width, 3, 1, 1)), relu,
            norm(nn.Conv2d(2 * width, 2 * width, 4, 2, 1)), relu,
            nn.Conv2d(2 * width, 1, 3, 1, 1),
        )  # fmt: skip


class PaintersTraining(pl.LightningModule):
    """Decoder on codes of the patch projection, critic on what it paints, encoder on the projection itself.

    Args:
        ddconfig, n_embed, embed_dim: as in CompVis' configurations.
        lr: Adam's, at the top of a warm-up of 50 steps and a cosine descent over `steps`.
        wrong: the largest share of codes that is replaced.
        jitter: the largest noise on the latent, in standard deviations of a channel.
        critic_from: the step from which the critic is listened to; it learns from 30 steps before.
        critic_share: its gradient at the decoder's last layer, relative to that of the reconstruction.
        seed: of the corruption; a step draws the same whether or not training was interrupted before it.
    """

    def __init__(self, ddconfig: dict, n_embed: int, embed_dim: int, lr: float, steps: int, wrong: float, jitter: float,
                 critic_from: int, critic_share: float, seed: int = 0):  # fmt: skip
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.painter, self.critic = Painter(ddconfig, n_embed, embed_dim), Critic()
        self.painter.quantize.embedding.weight.requires_grad_(False)
        self.f = 2 ** (len(ddconfig["ch_mult"]) - 1)
        self.register_buffer("weight", torch.zeros(embed_dim, 3 * self.f**2))
        self.register_buffer("mean", torch.zeros(3 * self.f**2))

    def fit_codes(self, pictures: np.ndarray, patches: int, rounds: int, seed: int, further: bool = False) -> None:
        """Set projection and codebook from pictures; see `codes.py`. With `further` the projection is kept."""
        points = sample_patches(pictures, self.f, patches, seed)
        codebook = self.painter.quantize.embedding.weight
        if not further:
            weight, mean = principal(points, len(self.weight))
            self.weight.copy_(weight)
            self.mean.copy_(mean)
        points = (points - self.mean) @ self.weight.T
        codebook.data.copy_(kmeans(points, len(codebook), rounds, seed, codebook.detach() if further else None))

    def codes(self, images: Tensor) -> Tensor:
        """The codes of images (B, 3, H, W) in [-1, 1], by the projection itself: (B, h, w)."""
        return self.painter.nearest(project(images.float(), self.weight, self.mean, self.f))

    def training_step(self, images: Tensor, batch_idx: int) -> None:
        at = self.global_step // 2  # Lightning counts the steps of both optimisers
        torch.manual_seed(self.hparams.seed * 1_000_003 + at)
        both, critics = self.optimizers()
        z = project(images.float(), self.weight, self.mean, self.f)
        codes = self.painter.nearest(jitter(z, self.hparams.jitter))
        codes = corrupt(codes, self.hparams.wrong, self.hparams.n_embed)
        painted = self.painter.decode(self.painter.embed(codes)).float()
        paint = reconstruction(painted, images)
        encode = F.mse_loss(self.painter.encode(images).float(), z)
        loss = paint + encode
        if at >= self.hparams.critic_from:
            loss = loss + self._liking(painted, paint, at)
        both.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(both, 1.0, "norm")
        both.step()
        self.lr_schedulers().step()

        real, fake = self.critic(torch.cat([images, painted.detach()])).float().chunk(2)
        hinge = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
        critics.zero_grad()
        self.manual_backward(hinge * (at >= self.hparams.critic_from - 30))
        critics.step()
        self.log_dict({"paint": paint, "encode": encode, "critic": hinge}, prog_bar=True)

    def _liking(self, painted: Tensor, paint: Tensor, at: int) -> Tensor:
        """The critic's opinion, scaled to a fixed share of the reconstruction's gradient (Esser et al. 2020)."""
        self.critic.requires_grad_(False)
        dislike = -self.critic(painted).float().mean()
        self.critic.requires_grad_(True)
        last = self.painter.decoder.conv_out.weight
        size = [torch.autograd.grad(x, last, retain_graph=True)[0].norm() for x in (paint, dislike)]
        ramp = min(1.0, (at - self.hparams.critic_from) / 100)
        return dislike * self.hparams.critic_share * ramp * (size[0] / (size[1] + 1e-6)).clamp(max=10)

    def configure_optimizers(self):
        learnt = [p for p in self.painter.parameters() if p.requires_grad]
        both = torch.optim.Adam(learnt, self.hparams.lr, (0.9, 0.99))
        critics = torch.optim.Adam(self.critic.parameters(), 4e-4, (0.5, 0.9))
        steps = self.hparams.steps
        rate = lambda s: min((s + 1) / 50, 0.03 + 0.97 * (0.5 + 0.5 * np.cos(np.pi * min(s / steps, 1))))  # noqa: E731
        return [both, critics], [torch.optim.lr_scheduler.LambdaLR(both, rate)]


def reconstruction(painted: Tensor, image: Tensor) -> Tensor:
    """Mean absolute error of pixels and, for edges, of their differences."""
    loss = F.l1_loss(painted, image)
    for axis in (2, 3):
        loss = loss + F.l1_loss(painted.diff(dim=axis), image.diff(dim=axis))
    return loss
