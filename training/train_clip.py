"""The CLIP of the embedded pair: OpenAI's network, made small, taught to see what its gradients would paint.

Telling scenes apart is easy and says nothing about guidance: a network that only does that is soon satisfied by
garbage. So its captions must also prefer scenes to pictures with wrong parts, and hold against the small disturbance
of the glimpse that would mislead them most: that is what turns its gradients from noise into shapes.
"""

from __future__ import annotations

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vqclip.cutouts import AUGMENTS, Cutouts, Draw, _bend, resampling
from vqclip.ops import clamp_with_grad
from vqclip.perceptor import MEAN, STD, openai_clip, tokenizer

from .captions import all_words, caption
from .codes import assign, project
from .data import floats
from .scenes import scene

SCALES = (1, 2, 4)  # glimpse pixels: gradients are compared averaged over squares of these sides


class Vocabulary:
    """The few BPE tokens that captions are made of.

    Attributes:
        ids: (U,) int32: which of OpenAI's tokens each row is; row 0 is padding (token 0).
    """

    def __init__(self):
        bpe = tokenizer()
        self.start, self.end = bpe.encoder["<|startoftext|>"], bpe.encoder["<|endoftext|>"]
        used = {token for text in all_words() for token in bpe.encode(text)}
        # OpenAI finds the end of a text as its largest token, so rows keep the tokens' order
        self.ids = torch.tensor(sorted({0, self.start, self.end, *used}), dtype=torch.int32)
        self.rows = {int(token): row for row, token in enumerate(self.ids)}

    def encode(self, texts: list[str], context: int) -> Tensor:
        """Texts -> rows (T, context); raises KeyError for a word that is not in the vocabulary."""
        batch = torch.zeros(len(texts), context, dtype=torch.long)
        for line, text in zip(batch, texts, strict=True):
            tokens = [self.start, *tokenizer().encode(text)[: context - 2], self.end]
            line[: len(tokens)] = torch.tensor([self.rows[token] for token in tokens])
        return batch


def glimpses(images: Tensor, cutter: Cutouts, draw: Draw) -> Tensor:
    """One glimpse of each image (B, 3, H, W) -> (B, 3, S, S), cut and disturbed as the loop does it."""
    side, left, top = draw.boxes.unbind(1)
    rows = resampling(side, top, images.shape[2], cutter.size)  # (B, S, H)
    columns = resampling(side, left, images.shape[3], cutter.size)  # (B, S, W)
    cut = rows[:, None] @ images @ columns[:, None].transpose(2, 3)
    cut = _bend(cut, draw.maps, cutter.how.padding)
    cut = torch.einsum("nij,njhw->nihw", draw.tints[..., :3], cut) + draw.tints[..., 3:, None]
    return clamp_with_grad(cut + draw.grains)


def spoil(z: Tensor, codebook: Tensor) -> Tensor:
    """Latents of pictures (B, C, h, w) -> latents as guidance meets them on its way to those pictures.

    By any share from nothing to all, each picture loses to one of: random codes cell by cell, a region of another
    picture, a blend with another picture, a blend with random codes, a fade to the mean code.
    """
    B, C, h, w = z.shape
    share = torch.rand(B, 1, 1, 1, device=z.device)
    draw = torch.randint(len(codebook), (B, h, w), device=z.device)
    codes, other = codebook[draw].permute(0, 3, 1, 2), z.roll(1, 0)
    cells = (torch.rand(B, 1, h, w, device=z.device) < share).float()
    hills = F.interpolate(torch.rand(B, 1, 3, 3, device=z.device), (h, w), mode="bilinear")
    hills = hills + 0.1 * torch.rand(B, 1, h, w, device=z.device)
    level = hills.flatten(1).sort(1).values.gather(1, (share.view(B, 1) * (h * w - 1)).long()).view(B, 1, 1, 1)
    region = (hills <= level).float()
    ways = torch.stack([
        z + cells * (codes - z), z + region * (other - z), z + share * (other - z), z + share * (codes - z),
        z * (1 - share) + share * codebook.mean(0).view(1, C, 1, 1),
    ])  # fmt: skip
    which = torch.tensor((0.2, 0.25, 0.25, 0.15, 0.15), device=z.device).multinomial(B, replacement=True)
    return ways[which, torch.arange(B, device=z.device)]


class Mosaic(nn.Module):
    """The painter without its decoder: each code as the patch that it stands for."""

    def __init__(self, painting):
        super().__init__()
        self.f = painting.f
        self.register_buffer("weight", painting.weight.clone(), persistent=False)
        self.register_buffer("mean", painting.mean.clone(), persistent=False)
        self.register_buffer("codebook", painting.painter.quantize.embedding.weight.detach().clone(), persistent=False)
        patches = self.codebook @ torch.linalg.pinv(self.weight).T + self.mean
        self.register_buffer("patches", (patches / 2 + 0.5).clamp(0, 1).view(-1, 3, self.f, self.f), persistent=False)

    @torch.no_grad()
    def spoilt(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] -> codes (B, h, w) of what `spoil` makes of them."""
        z = spoil(project(images * 2 - 1, self.weight, self.mean, self.f), self.codebook)
        codes = assign(z.permute(0, 2, 3, 1).flatten(0, 2), self.codebook)
        return codes.view(z.shape[0], *z.shape[2:])

    def forward(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w) -> images (B, 3, H, W) in [0, 1]."""
        B, h, w = codes.shape
        return self.patches[codes].permute(0, 3, 1, 4, 2, 5).reshape(B, 3, h * self.f, w * self.f)


def agree(logits: Tensor, right: Tensor) -> Tensor:
    """Cross-entropy with many right answers: logits (T, N), right (T, N) bool -> scalar. Rows of none count nothing."""
    count = right.sum(1)
    each = -(logits.log_softmax(1) * right).sum(1) / count.clamp(min=1)
    return each.sum() / (count > 0).sum().clamp(min=1)


class JudgesTraining(pl.LightningModule):
    """Contrastive learning with many right answers, in which every gradient must point at a right picture.

    What guides a picture is not how alike CLIP finds it to the text, but where that likeness rises. So besides telling
    pictures apart, the likeness of a spoilt picture to a caption must rise towards the whole picture that the caption
    was made of: denoising score matching (Vincent 2011; Song and Ermon 2019, arXiv 1907.05600) of an energy that is
    CLIP's own cosine. The many ways to spoil a picture take the place of the noise.

    Args:
        network: arguments of OpenAI's `CLIP`, without the vocabulary's size.
        lr, steps, weight_decay: AdamW's; warm-up of 50 steps, cosine descent.
        pointing: weight of the gradients' direction against the contrastive loss.
        mosaic: shows spoilt pictures where the batch brings none.
        seed: of all glimpses; a step draws the same whether or not training was interrupted before it.
    """

    def __init__(self, network: dict, lr: float, steps: int, weight_decay: float, pointing: float, mosaic: Mosaic,
                 seed: int = 0):  # fmt: skip
        super().__init__()
        self.save_hyperparameters(ignore=["mosaic"])
        self.mosaic = mosaic
        self.vocabulary = Vocabulary()
        self.clip = openai_clip("model").CLIP(**network, vocab_size=len(self.vocabulary.ids))
        nn.init.constant_(self.clip.logit_scale, np.log(10.0))
        self.cutter = Cutouts(network["image_resolution"], how=AUGMENTS["mse"], seed=seed)
        self.register_buffer("average", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("spread", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def see(self, glimpses: Tensor) -> Tensor:
        """Glimpses (N, 3, S, S) in [0, 1] -> unit rows (N, D)."""
        return F.normalize(self.clip.encode_image((glimpses - self.average) / self.spread).float(), dim=1)

    def read(self, texts: list[str]) -> Tensor:
        """T texts -> unit rows (T, D)."""
        tokens = self.vocabulary.encode(texts, self.clip.context_length).to(self.average.device)
        return F.normalize(self.clip.encode_text(tokens).float(), dim=1)

    def training_step(self, batch, batch_idx: int) -> Tensor:
        whole, spoilt, facts, texts, said = batch
        at = self.hparams.seed * 1_000_003 + self.global_step
        torch.manual_seed(at)
        spoilt = torch.cat([self.mosaic(self.mosaic.spoilt(whole[: len(whole) - len(spoilt)])), spoilt])
        self.cutter.generator.manual_seed(at)
        self.cutter.noise_generator.manual_seed(at)
        self.cutter.n = len(whole)
        draw = self.cutter.draw(*whole.shape[2:])
        whole, spoilt = (glimpses(images, self.cutter, draw) for images in (whole, spoilt))
        right = torch.tensor([[s <= f for f in facts] for s in said], device=whole.device)  # (T, B)
        read, seen = self.read(list(texts)), self.see(whole)
        with torch.autocast(whole.device.type, enabled=False):  # bfloat16 is too coarse to tell likenesses apart
            logits = self.clip.logit_scale.exp().clamp(max=30) * read @ seen.T  # (T, B)
        losses = {"texts": agree(logits, right), "images": agree(logits.T, right.T)}
        losses["pointing"] = self._pointing(whole, spoilt, read)
        self.log_dict(losses)
        return losses["texts"] + 0.5 * losses["images"] + self.hparams.pointing * losses["pointing"]

    def _pointing(self, whole: Tensor, spoilt: Tensor, read: Tensor) -> Tensor:
        """1 - the cosine between where the likeness rises and where the whole picture is.

        Half of it for each picture by itself, half over the batch as one vector, so that gradients also are as long as
        there is far to go. At full resolution too, where most of a gradient's noise is, and coarser, where codes
        can follow.
        """
        self.clip.eval()  # BatchNorm as the loop will see it
        spoilt = spoilt.detach().requires_grad_(True)
        with sdpa_kernel(SDPBackend.MATH):  # the fused ones have no second derivative
            likeness = (self.see(spoilt) * read).sum()
            (uphill,) = torch.autograd.grad(likeness, spoilt, create_graph=True)
        self.clip.train()
        cosines = []
        for pixels in SCALES:
            up, ahead = (F.avg_pool2d(x.float(), pixels).flatten(1) for x in (uphill, whole - spoilt.detach()))
            cosines += [
                F.cosine_similarity(up, ahead, dim=1).mean(),
                F.cosine_similarity(up.flatten(), ahead.flatten(), 0),
            ]
        return 1 - torch.stack(cosines).mean()

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.clip.parameters(), self.hparams.lr, (0.9, 0.98),
                                      weight_decay=self.hparams.weight_decay)  # fmt: skip
        steps = self.hparams.steps
        rate = lambda s: min((s + 1) / 50, 0.03 + 0.97 * (0.5 + 0.5 * np.cos(np.pi * min(s / steps, 1))))  # noqa: E731
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, rate), "interval": "step"}]


class Captioned(torch.utils.data.IterableDataset):
    """Batches (whole, spoilt, facts, texts, said), step by step from one seed.

    whole (B, 3, H, W) in [0, 1]: scenes as rendered and then, where there is a painter, scenes as it repaints them, so
    that its manner is no sign of anything; spoilt (B', 3, H, W): those last ones as it shows spoilt codes of them.
    facts: what is true of each image. texts, said: a caption of each image and the facts that it mentions.

    Args:
        pictures: (M, H, W, 3) uint8, the scenes 0 to M.
        painted: two arrays (M', H, W, 3) uint8, the first scenes through the painter, whole and spoilt; see `repaint`.
        share: of the batch that is painted.
    """

    def __init__(self, pictures, batch: int, seed: int, skip: int = 0, painted=None, share: float = 0.75):
        self.pictures, self.batch, self.seed, self.skip = pictures, batch, seed, skip
        self.painted = painted if painted is not None else (pictures[:0], pictures[:0])
        self.count = int(batch * share) if painted is not None else 0
        self.scenes = [scene(k) for k in range(len(pictures))]

    def __iter__(self):
        step = self.skip
        while True:
            rng = np.random.default_rng((self.seed, step))
            fresh = np.sort(rng.choice(len(self.pictures), self.batch - self.count, replace=False))
            again = np.sort(rng.choice(max(1, len(self.painted[0])), self.count, replace=False))
            whole = np.concatenate([self.pictures[fresh], self.painted[0][again]])
            scenes = [self.scenes[k] for k in (*fresh, *again)]
            texts, said = zip(*(caption(s, rng) for s in scenes), strict=True)
            yield floats(whole), floats(self.painted[1][again]), [s.facts for s in scenes], texts, said
            step += 1


@torch.no_grad()
def repaint(painting, mosaic: Mosaic, pictures: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures as the painter of a `PaintersTraining` shows their codes, and as it shows spoilt ones."""
    torch.manual_seed(seed)
    painter, again, spoilt = painting.painter.eval(), np.empty_like(pictures), np.empty_like(pictures)
    for first in range(0, len(pictures), 16):
        some = slice(first, first + 16)
        images = floats(pictures[some]).to(painting.device)
        for target, codes in ((again, painting.codes(images * 2 - 1)), (spoilt, mosaic.spoilt(images))):
            with torch.autocast(painting.device.type, torch.bfloat16):
                painted = painter.decode(painter.embed(codes))
            target[some] = ((painted.float().clamp(-1, 1) + 1) * 127.5 + 0.5).byte().permute(0, 2, 3, 1).cpu().numpy()
    return again, spoilt
