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

from vqclip.cutouts import AUGMENTS, Cutouts, _bend, resampling
from vqclip.ops import clamp_with_grad
from vqclip.perceptor import MEAN, STD, openai_clip, tokenizer

from .captions import all_words, caption
from .scenes import scene


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


def look(images: Tensor, cutter: Cutouts) -> Tensor:
    """One glimpse of each image (B, 3, H, W) -> (B, 3, S, S), cut and disturbed as the loop does it."""
    cutter.n = len(images)
    draw = cutter.draw(*images.shape[2:])
    side, left, top = draw.boxes.unbind(1)
    rows = resampling(side, top, images.shape[2], cutter.size)  # (B, S, H)
    columns = resampling(side, left, images.shape[3], cutter.size)  # (B, S, W)
    cut = rows[:, None] @ images @ columns[:, None].transpose(2, 3)
    cut = _bend(cut, draw.maps, cutter.how.padding)
    cut = torch.einsum("nij,njhw->nihw", draw.tints[..., :3], cut) + draw.tints[..., 3:, None]
    return clamp_with_grad(cut + draw.grains)


def mix(images: Tensor, cell: int) -> Tensor:
    """Images in which a share of the cells comes from others of the batch: what a wrong grid of codes looks like."""
    B, _, H, W = images.shape
    h, w = H // cell, W // cell
    share = torch.rand(B, 1, 1, 1) ** 1.5 * 0.9 + 0.1
    coarse = F.interpolate(torch.rand(B, 1, 3, 3), (h, w), mode="bilinear")
    score = torch.where(torch.rand(B, 1, 1, 1) < 0.5, coarse + 0.1 * torch.rand(B, 1, h, w), torch.rand(B, 1, h, w))
    limit = score.flatten(1).sort(1).values.gather(1, (share.view(B, 1) * (h * w - 1)).long()).view(B, 1, 1, 1)
    mask = (score <= limit).float().repeat_interleave(cell, 2).repeat_interleave(cell, 3)
    return images + mask * (images.roll(1, 0) - images)


def agree(logits: Tensor, right: Tensor) -> Tensor:
    """Cross-entropy with many right answers: logits (T, N), right (T, N) bool -> scalar. Rows of none count nothing."""
    count = right.sum(1)
    each = -(logits.log_softmax(1) * right).sum(1) / count.clamp(min=1)
    return each.sum() / (count > 0).sum().clamp(min=1)


class JudgesTraining(pl.LightningModule):
    """Contrastive learning with many right answers, against wrong pictures and against its own worst disturbance.

    Args:
        network: arguments of OpenAI's `CLIP`, without the vocabulary's size.
        lr, steps, weight_decay: AdamW's; warm-up of 50 steps, cosine descent.
        cell: pixels of a cell of `mix`, the painter's f.
        disturb: the largest norm of what is added to a glimpse to mislead the network; 0 for none. A network that
            withstands this has gradients that look like what it knows (Santurkar et al. 2019, arXiv 1906.09453).
        seed: of all disturbances; a step draws the same whether or not training was interrupted before it.
    """

    def __init__(self, network: dict, lr: float, steps: int, weight_decay: float, cell: int, disturb: float = 0.0,
                 seed: int = 0):  # fmt: skip
        super().__init__()
        self.save_hyperparameters()
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
        images, wrong, facts, texts, said = batch
        at = self.hparams.seed * 1_000_003 + self.global_step
        torch.manual_seed(at)
        self.cutter.generator.manual_seed(at)
        self.cutter.noise_generator.manual_seed(at)
        wrong = torch.cat([mix(images, self.hparams.cell)[: len(images) // 2], wrong])
        glimpses = look(torch.cat([images, wrong]), self.cutter)
        right = torch.tensor([[s <= f for f in facts] for s in said], device=glimpses.device)  # (T, B)
        read = self.read(list(texts))
        if self.hparams.disturb:
            glimpses = self._mislead(glimpses, read.detach(), right)
        losses = self._losses(glimpses, read, right)
        self.log_dict(losses)
        return losses["texts"] + 0.5 * losses["images"]

    def _losses(self, glimpses: Tensor, read: Tensor, right: Tensor) -> dict[str, Tensor]:
        """Glimpses of B right pictures and then of wrong ones, texts (T, D), who is right for whom (T, B)."""
        count = right.shape[1]
        logits = self.clip.logit_scale.exp().clamp(max=30) * read @ self.see(glimpses).T  # (T, N)
        nowhere = right.new_zeros(len(right), len(glimpses) - count)
        return {
            "texts": agree(logits, torch.cat([right, nowhere], 1)),
            "images": agree(logits[:, :count].T, right.T),
        }

    def _mislead(self, glimpses: Tensor, read: Tensor, right: Tensor) -> Tensor:
        """Glimpses moved a random length up the loss, from a random place near by."""
        norm = lambda x: x.flatten(1).norm(dim=1).view(-1, 1, 1, 1) + 1e-9  # noqa: E731
        away = torch.randn_like(glimpses)
        away = (away / norm(away) * self.hparams.disturb / 2).requires_grad_(True)
        self.clip.eval()  # as the loop will see it, and BatchNorm's statistics stay those of plain pictures
        losses = self._losses(glimpses + away, read, right)
        (uphill,) = torch.autograd.grad(losses["texts"] + 0.5 * losses["images"], away)
        self.clip.train()
        length = self.hparams.disturb * torch.rand(len(glimpses), 1, 1, 1, device=glimpses.device)
        return (glimpses + away.detach() + length * uphill / norm(uphill)).clamp(0, 1)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.clip.parameters(), self.hparams.lr, (0.9, 0.98),
                                      weight_decay=self.hparams.weight_decay)  # fmt: skip
        steps = self.hparams.steps
        rate = lambda s: min((s + 1) / 50, 0.03 + 0.97 * (0.5 + 0.5 * np.cos(np.pi * min(s / steps, 1))))  # noqa: E731
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, rate), "interval": "step"}]


class Captioned(torch.utils.data.IterableDataset):
    """Batches (images, wrong, facts, texts, said), step by step from one seed.

    images (B, 3, H, W) in [0, 1]: scenes as rendered or, where there is a painter, half of them as it repaints them,
    so that its manner is no sign of anything. wrong (B', 3, H, W): what it paints of spoilt codes. facts: what is
    true of each image. texts, said: a caption of each image and the facts that it mentions.

    Args:
        pictures: (M, H, W, 3) uint8, the scenes 0 to M.
        repainted, spoilt: (M', H, W, 3) uint8, the first scenes through the painter; see `repaint`. Or None.
    """

    def __init__(self, pictures, batch: int, seed: int, skip: int = 0, repainted=None, spoilt=None):
        self.pictures, self.batch, self.seed, self.skip = pictures, batch, seed, skip
        self.repainted, self.spoilt = repainted, spoilt
        self.scenes = [scene(k) for k in range(len(pictures))]

    def __iter__(self):
        step = self.skip
        while True:
            rng = np.random.default_rng((self.seed, step))
            chosen = rng.choice(len(self.pictures), self.batch, replace=False)
            parts, wrong = [self.pictures[np.sort(chosen)]], self.pictures[:0]
            scenes = [self.scenes[k] for k in np.sort(chosen)]
            if self.repainted is not None:
                again, spoilt = rng.choice(len(self.repainted), (2, self.batch // 2))
                parts = [parts[0][: self.batch - len(again)], self.repainted[again]]
                scenes = scenes[: self.batch - len(again)] + [self.scenes[k] for k in again]
                wrong = self.spoilt[spoilt]
            texts, said = zip(*(caption(s, rng) for s in scenes), strict=True)
            yield _floats(np.concatenate(parts)), _floats(wrong), [s.facts for s in scenes], texts, said
            step += 1


def _floats(pictures: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def repaint(training, pictures: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures as the painter of a `PaintersTraining` shows their codes, and the same with some codes replaced."""
    painter, generator = training.painter.eval(), torch.Generator().manual_seed(seed)
    again, spoilt = np.empty_like(pictures), np.empty_like(pictures)
    for first in range(0, len(pictures), 16):
        some = slice(first, first + 16)
        codes = training.codes((_floats(pictures[some]) * 2 - 1).to(training.device)).cpu()
        draw = lambda *shape: torch.rand(*shape, generator=generator)  # noqa: E731
        anything = torch.randint(len(painter.quantize.embedding.weight), codes.shape, generator=generator)
        other = torch.where(draw(len(codes), 1, 1) < 0.5, anything, codes.roll(1, 0))
        bad = torch.where(draw(codes.shape) < draw(len(codes), 1, 1) ** 1.3, other, codes)
        for target, grid in ((again, codes), (spoilt, bad)):
            with torch.autocast(training.device.type, torch.bfloat16):
                painted = painter.decode(painter.embed(grid.to(training.device)))
            target[some] = ((painted.float().clamp(-1, 1) + 1) * 127.5 + 0.5).byte().permute(0, 2, 3, 1).cpu().numpy()
    return again, spoilt
