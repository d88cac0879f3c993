"""VQGAN: the painter. A thin module around taming-transformers' encoder and decoder.

Parameter names are those of the published checkpoints (Esser, Rombach, Ommer 2020, arXiv 2012.09841), so their state
dicts load strictly. Only what painting needs is here: no training loss, no discriminator, no Lightning.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import torch
from taming.modules.diffusionmodules.model import Decoder, Encoder
from torch import Tensor, nn

from . import checkpoints, decoder
from .ops import again, embed_codes, nearest_codes, patch_grad

FIRST_STAGE = "first_stage_model."  # what a Net2NetTransformer calls its VQGAN


class VQGAN(nn.Module):
    """Encoder, codebook and decoder of a VQGAN.

    Args:
        ddconfig: the checkpoint's `ddconfig`: ch, ch_mult, z_channels, num_res_blocks, attn_resolutions, ...
        n_embed: K, how many codes there are.
        embed_dim: C, the length of one code.
        gumbel: whether codes are chosen by a learnt projection (taming's GumbelVQ) rather than by distance when an
            image is encoded.
        patches: whether the checkpoint has a patch (3, f, f) by which each channel of a latent follows the picture:
            gradients then go through these and not through the decoder; see `ops.patch_grad`.

    Attributes:
        sparing: whether `decode` keeps little for its way back and computes the rest again, for a third more of its
            time. The gradient is the same.
        channels_last: whether the decoder has them, as processors and graphics cards like it; see `paint_in`.
    """

    def __init__(self, ddconfig: dict, n_embed: int, embed_dim: int, gumbel: bool = False, patches: bool = False):
        super().__init__()
        z_channels = ddconfig["z_channels"]
        with contextlib.redirect_stdout(io.StringIO()):  # taming's Decoder prints its latent's shape
            self.encoder, self.decoder = Encoder(**ddconfig), Decoder(**ddconfig)
        self.quant_conv = nn.Conv2d(z_channels, embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)
        self.quantize = nn.Module()
        self.gumbel = gumbel
        if gumbel:
            self.quantize.proj = nn.Conv2d(embed_dim, n_embed, 1)
            self.quantize.embed = nn.Embedding(n_embed, embed_dim)
        else:
            self.quantize.embedding = nn.Embedding(n_embed, embed_dim)
        self.f = 2 ** (len(ddconfig["ch_mult"]) - 1)
        self.register_buffer("patches", torch.zeros(embed_dim, 3, self.f, self.f) if patches else None)
        self.precision, self.sparing, self.channels_last = torch.float32, False, False
        self.name, self.sha256 = "vqgan", None

    @property
    def codebook(self) -> Tensor:
        """The K codes a latent is made of: (K, C)."""
        return (self.quantize.embed if self.gumbel else self.quantize.embedding).weight

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """The smallest latent grid (w, h) whose picture covers `width` x `height` pixels."""
        return -(-width // self.f), -(-height // self.f)

    def whole(self, width: int, height: int) -> tuple[int, int]:
        """The size (W, H) of the picture of that grid: what it is painted at before it is cropped."""
        w, h = self.grid(width, height)
        return w * self.f, h * self.f

    def encode(self, image: Tensor) -> Tensor:
        """Image (B, 3, H, W) in [0, 1], H and W multiples of f -> codes (B, h, w).

        A Gumbel model takes its most likely code instead of sampling one, so the same image gives the same codes.
        """
        if image.shape[2] % self.f or image.shape[3] % self.f:
            raise ValueError(
                f"an image of {image.shape[3]}x{image.shape[2]} pixels does not divide into codes of {self.f}x{self.f}:"
                f" make both sides multiples of {self.f}"
            )
        z = self.quant_conv(self.encoder(image * 2 - 1))  # (B, C, h, w)
        return self.quantize.proj(z).argmax(1) if self.gumbel else nearest_codes(z, self.codebook)

    def nearest(self, z: Tensor) -> Tensor:
        """The codes nearest to a latent: (B, C, h, w) -> (B, h, w)."""
        return nearest_codes(z, self.codebook)

    def embed(self, codes: Tensor) -> Tensor:
        """The latent that codes stand for: (B, h, w) -> z_q (B, C, h, w)."""
        return embed_codes(codes, self.codebook)

    def decode(self, z_q: Tensor) -> Tensor:
        """Latent (B, C, h, w) -> image (B, 3, H, W), nominally in [0, 1] but not clamped; in the latent's format.

        Its gradient reaches the latent; the weights of the decoder's norms get none.
        """
        return self._paint(z_q) if self.patches is None else patch_grad(self._paint, z_q, self.patches)

    def _paint(self, z_q: Tensor) -> Tensor:
        h = self.post_quant_conv(z_q.to(self.post_quant_conv.weight.dtype))
        if self.channels_last and not h.is_meta:  # where it is only counted
            h = h.contiguous(memory_format=torch.channels_last)
        return (decoder.decode(self.decoder, h, again if self.sparing else None).to(z_q.dtype) + 1) / 2

    def paint_in(self, precision: torch.dtype) -> VQGAN:
        """Have `decode` compute in float32 or bfloat16; returns itself. Codes, latents, encoder and picture stay.

        The decoder's weights are cast and joined (`decoder.join`) once and for all, so that the way back to float32 is
        to load them again; weights that come later need it once more. Where that pays on the device that they are on,
        they are given channels last too; `generate` sees to it for painters that were moved. One that goes back patch
        by patch has them in float32 on a processor, and not on a card, where its first picture would wait for kernels.
        """
        self.precision = precision
        decoder.join(self.decoder.to(precision))
        device = self.codebook.device
        self.channels_last = (decoder.takes_last(device, precision) if self.patches is None
                              else device.type == "cpu" and precision == torch.float32)  # fmt: skip
        self.decoder.to(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)
        self.post_quant_conv.to(precision)
        return self


def load_vqgan(source: str | Path = "embedded", device: str | torch.device = "cpu", root: str | Path = ".",
               precision: torch.dtype = torch.float32) -> VQGAN:  # fmt: skip
    """Load a VQGAN for painting: frozen, in eval mode.

    Args:
        source: "embedded"; the path of a checkpoint (.safetensors or .ckpt, with its .yaml beside it); the name of one
            in `root`; or a name of the catalogue, such as "imagenet_f16_16384", which is fetched if it is not there.
        device: where it shall live.
        root: the folder in which checkpoints are looked for by name, and into which they are fetched.
        precision: what pictures are decoded in; see `precision.dtypes` and `VQGAN.paint_in`.
    Raises:
        CheckpointError: the files are not there and cannot be fetched, or do not hold this kind of model.
    """
    path = checkpoints.find(source, root, "vqgan")
    config, weights = read_vqgan(path)
    vqgan = _blank(config, path)
    checkpoints.load_strictly(vqgan, {key: value.float() for key, value in weights.items()}, path)
    vqgan.name, vqgan.sha256 = str(source), checkpoints.sha256(path)
    return vqgan.to(device).eval().requires_grad_(False).paint_in(precision)


def read_vqgan(path: Path, config: dict | None = None) -> tuple[dict, dict[str, Tensor]]:
    """What painting needs of a checkpoint: (the arguments of `VQGAN`, its tensors, mapped from the disk).

    Of a Net2NetTransformer that is its first stage; discriminator and perceptual loss are left out.

    Raises:
        CheckpointError: a tensor is missing or surplus or of another shape; says which.
    """
    weights = checkpoints.read_weights(path, skip=("loss.", f"{FIRST_STAGE}loss.", "transformer.", "cond_stage_model."))
    config = config or checkpoints.read_config(path)
    first_stage = {key[len(FIRST_STAGE) :]: value for key, value in weights.items() if key.startswith(FIRST_STAGE)}
    weights = first_stage or weights
    checkpoints.check(_blank(config, path), weights, path)
    return config, weights


def _blank(config: dict, path: Path) -> VQGAN:
    """The network without weights."""
    try:
        with checkpoints.blank():
            return VQGAN(**config)
    except Exception as error:  # whatever taming trips over in numbers that are none
        reason = str(error).partition("\n")[0]  # torch may go on for pages
        raise checkpoints.CheckpointError(
            f"the configuration of {path.name} describes no VQGAN ({type(error).__name__}: {reason}): fetch it again"
        ) from error
