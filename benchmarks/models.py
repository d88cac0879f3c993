"""What is measured: painters and judges of the published sizes with random weights, small ones, and the shipped pair.

Each is built twice from the same numbers: `plain`, the networks layer by layer as their authors wrote them, which the
reference loop drives; and ours, as vqclip loads them. The plain ones are in float32, on a graphics card CLIP in float16
as `clip.load` has it and convolutions in TF32 as torch has it where nobody says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import vqclip
from vqclip.catalogue import find
from vqclip.perceptor import CLIP, MEAN, STD, build_clip, openai_clip
from vqclip.precision import able, dtypes
from vqclip.preflight import VIT_B_32

from . import reference

PROMPTS = {"a desert at sunset": 0.67, "snow on mountains": 0.33}
SMALL = dict(embed_dim=48, image_resolution=32, vision_layers=2, vision_width=128, vision_patch_size=8,
             context_length=77, vocab_size=49408, transformer_width=64, transformer_heads=1,
             transformer_layers=1)  # fmt: skip
SMALL_PAINTER = dict(n_embed=64, embed_dim=16, ddconfig=dict(
    double_z=False, z_channels=16, resolution=32, in_channels=3, out_ch=3, ch=32, ch_mult=[1, 1, 2], num_res_blocks=1,
    attn_resolutions=[8], dropout=0.0))  # fmt: skip


@dataclass(frozen=True)
class Models:
    """A pair of networks.

    Attributes:
        kind: "full", "small" or "embedded".
        device: where they live.
    """

    kind: str
    device: torch.device

    def painter(self, precision: str = "float32") -> vqclip.VQGAN:
        """The painter as vqclip has it."""
        wanted = dtypes(precision, able(self.device)).painter
        if self.kind == "embedded":
            return vqclip.load_vqgan("embedded", self.device, precision=wanted)
        config = find("imagenet_f16_16384").config if self.kind == "full" else SMALL_PAINTER
        with torch.random.fork_rng():
            torch.manual_seed(0)
            painter = vqclip.VQGAN(**config)
            nn.init.normal_(painter.codebook)
        painter.name = f"{self.kind} painter"
        return painter.to(self.device).eval().requires_grad_(False).paint_in(wanted)

    def judge(self, precision: str = "float32") -> CLIP:
        """The judge as vqclip has it."""
        wanted = dtypes(precision, able(self.device)).judge
        if self.kind == "embedded":
            return vqclip.load_clip("embedded", self.device, wanted)
        return build_clip(self._clip().state_dict(), f"{self.kind} judge", wanted).to(self.device)

    def _clip(self) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return openai_clip("model").CLIP(**(VIT_B_32 if self.kind == "full" else SMALL))

    def _authors(self, judge: CLIP) -> nn.Module:
        """OpenAI's network of a judge's weights, with their layers where ours has its own."""
        with torch.device(self.device):
            network = openai_clip("model").build_model(judge.network.state_dict()).float()
        network.load_state_dict(judge.network.state_dict())  # what was built went through float16
        if self.device.type == "cuda":
            openai_clip("model").convert_weights(network)  # float16, in place
        return network.requires_grad_(False)

    def run(self, size: int, cutouts: int, precision: str = "float32", prompts: Mapping[str, float] = PROMPTS,
            **changes) -> vqclip.Run:  # fmt: skip
        """Our loop on this pair, without augmentation, as the reference has it."""
        settings = dict(size=(size, size), cutouts=cutouts, augment="none", optimizer="adam", lr=0.1, churn=0,
                        cut_pow=1.0, steps=10**6, device=str(self.device))  # fmt: skip
        words = " | ".join(f"{text}:{weight}" for text, weight in prompts.items())
        return vqclip.generate(words, self.painter(precision), self.judge(precision), **{**settings, **changes})

    def reference(self, size: int, cutouts: int, prompts: Mapping[str, float] = PROMPTS,
                  seed: int = 0) -> Callable[[], reference.Iteration]:  # fmt: skip
        """The plain loop on this pair: each call makes one iteration."""
        painter, judge = self.painter(), self.judge()
        painter.decoder.to(memory_format=torch.contiguous_format)  # as its authors had it
        targets = [reference.Target(judge.encode_text([text]), weight) for text, weight in prompts.items()]
        network, generator = self._authors(judge), torch.Generator().manual_seed(seed)
        (w, h), side = painter.grid(size, size), judge.size
        z = reference.random_start(painter.codebook.cpu(), h, w, generator).to(self.device)
        adam = reference.Adam(0.1)

        def encode(cuts: Tensor) -> Tensor:
            return network.encode_image(cuts).float()

        def iterate() -> reference.Iteration:
            nonlocal z
            crops = reference.draw_crops(size, size, cutouts, side, generator)
            made = reference.iterate(z, decode=lambda z_q: painter.decoder(painter.post_quant_conv(z_q)),
                                     codebook=painter.codebook, optimizer=adam,
                                     judges=[reference.Judge(encode, side, targets, crops)])  # fmt: skip
            z = made.z
            return made

        assert (judge.mean.flatten().tolist(), judge.std.flatten().tolist()) == (
            torch.tensor(MEAN).tolist(), torch.tensor(STD).tolist())  # the colours that the reference has  # fmt: skip
        return iterate
