"""The CLIP of the embedded pair: OpenAI's network, made small, taught to see what its gradients would paint.

Telling scenes apart is easy and says nothing about guidance: a network that only does that is soon satisfied by
garbage. So its captions must also prefer scenes to what guidance paints: grids with wrong codes, and the pictures of
chains that run the package's own loop against the network while it learns (self-play).
"""

from __future__ import annotations

import lightning
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqclip.cutouts import AUGMENTS, Cutouts, _bend, resampling
from vqclip.ops import clamp_with_grad, straight_through
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
    """Cross-entropy with many right answers: logits (T, N), right (T, N) bool -> scalar."""
    right = right.float()
    return -((logits.log_softmax(1) * right).sum(1) / right.sum(1).clamp(min=1))[right.sum(1) > 0].mean()


class Chains:
    """Pictures on their way: the guidance loop, run against a CLIP that learns from where it gets.

    Args:
        painter: the trained VQGAN (`train_vqgan.Painter`), frozen.
        count: how many run side by side.
        life: after how many steps, on average, one starts anew with another caption.
        lr: of Adam, with Crowson's betas.
    """

    def __init__(self, painter, count: int, life: int, lr: float):
        self.painter, self.life, self.lr = painter.eval().requires_grad_(False), life, lr
        self.book = painter.quantize.embedding.weight  # (K, C)
        side = 128 // 2 ** (len(painter.decoder.up) - 1)
        self.z = torch.zeros(count, self.book.shape[1], side, side)
        self.first, self.second = torch.zeros_like(self.z), torch.zeros_like(self.z)
        self.age = torch.zeros(count, dtype=torch.long)
        self.facts: list = [None] * count
        self.texts = [""] * count

    def renew(self, captions) -> None:
        """Let some start anew; `captions` gives pairs of text and facts."""
        for k in range(len(self.texts)):
            if self.facts[k] is None or np.random.random() < 1 / self.life:
                self.texts[k], self.facts[k] = next(captions)
                codes = torch.randint(len(self.book), self.z.shape[2:])
                start = self.book[codes].permute(2, 0, 1)
                if np.random.random() < 0.5:
                    start = self.book.mean(0).view(-1, 1, 1).expand_as(start)
                self.z[k] = start
                self.first[k], self.second[k], self.age[k] = 0, 0, 0

    def step(self, distance) -> Tensor:
        """Move all by one step down `distance(images)`, a scalar; returns the images (N, 3, H, W) before it."""
        z = self.z.clone().requires_grad_(True)
        z_q = straight_through(self.painter.embed(self.painter.nearest(z.detach())), z)
        with torch.autocast(z.device.type, torch.bfloat16):
            images = self.painter.decode(z_q)
        images = clamp_with_grad((images.float() + 1) / 2)
        (gradient,) = torch.autograd.grad(distance(images), z)
        self.age += 1
        age = self.age.view(-1, 1, 1, 1)
        self.first.lerp_(gradient, 0.1)
        self.second.lerp_(gradient**2, 0.001)
        step = (self.first / (1 - 0.9**age)) / ((self.second / (1 - 0.999**age)).sqrt() + 1e-8)
        self.z -= self.lr * step
        low, high = self.book.amin(0).view(-1, 1, 1), self.book.amax(0).view(-1, 1, 1)
        self.z = self.z.clamp(min=low).minimum(high)
        return images.detach()


class JudgesTraining(lightning.LightningModule):
    """Contrastive learning with many right answers, against wrong pictures of several kinds.

    Args:
        network: arguments of OpenAI's `CLIP`, without the vocabulary's size.
        lr, steps, weight_decay: AdamW's; warm-up of 100 steps, cosine descent.
        pixels: the largest norm of an adversarial disturbance of the pictures (0: none).
    """

    def __init__(self, network: dict, lr: float, steps: int, weight_decay: float, cell: int, seed: int):
        super().__init__()
        self.save_hyperparameters()
        self.vocabulary = Vocabulary()
        self.clip = openai_clip("model").CLIP(**network, vocab_size=len(self.vocabulary.ids))
        nn.init.constant_(self.clip.logit_scale, np.log(10.0))
        self.cutter = Cutouts(network["image_resolution"], how=AUGMENTS["mse"], seed=seed)
        self.register_buffer("average", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("spread", torch.tensor(STD).view(1, 3, 1, 1))
        self.chains: Chains | None = None
        self.decoder = None  # a Painter, to show wrong codes

    def see(self, glimpses: Tensor) -> Tensor:
        """Glimpses (N, 3, S, S) in [0, 1] -> unit rows (N, D)."""
        return F.normalize(self.clip.encode_image((glimpses - self.average) / self.spread).float(), dim=1)

    def read(self, texts: list[str]) -> Tensor:
        """T texts -> unit rows (T, D)."""
        return F.normalize(self.clip.encode_text(self.vocabulary.encode(texts, self.clip.context_length)).float(), dim=1)

    def wrong(self, images: Tensor) -> Tensor:
        """Pictures like scenes, but wrong: cells mixed, and codes replaced where there is a painter."""
        return mix(images, self.hparams.cell)

    def training_step(self, batch, step: int) -> Tensor:
        images, facts, texts, said = batch
        wrong = self.wrong(images)
        pictures = [images, wrong]
        holds = [[s <= f for f in facts] for s in said]
        right = torch.tensor(holds)
        if self.chains is not None:
            pictures.append(self._play())
            texts = [*texts, *self.chains.texts]
            right = torch.cat([right, torch.tensor([[s <= f for f in facts] for s in self.chains.facts])])
        glimpses = torch.cat([look(some, self.cutter) for some in pictures])
        seen, read = self.see(glimpses), self.read(texts)
        logits = self.clip.logit_scale.exp().clamp(max=30) * read @ seen.T  # (T, N)
        none = torch.zeros(len(texts), len(seen) - len(images), dtype=torch.bool)
        loss_texts = agree(logits, torch.cat([right, none], 1))
        loss_images = agree(logits[:, : len(images)].T, right.T)
        with torch.no_grad():
            real = (logits[:, : len(images)] * right).sum() / right.sum()
            self.log("gap", real - logits[:, len(images) : 2 * len(images)].mean())
            if self.chains is not None:
                n = len(self.chains.texts)
                self.log("chain", logits[-n:, -n:].diag().mean())
                self.log("real", real)
        self.log("texts", loss_texts, prog_bar=True)
        self.log("images", loss_images, prog_bar=True)
        return loss_texts + 0.5 * loss_images

    def _play(self) -> Tensor:
        """One step of the chains, seen by the network in its present state."""
        self.chains.renew(self.captions)
        training = self.clip.training
        self.clip.eval()
        with torch.no_grad():
            targets = self.read(self.chains.texts)

        def distance(images: Tensor) -> Tensor:
            total = 0.0
            for _ in range(2):
                seen = self.see(look(images, self.cutter))
                total = total + (seen - targets).norm(dim=1).div(2).arcsin().pow(2).mul(2).sum()
            return total

        images = self.chains.step(distance)
        self.clip.train(training)
        return images

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.clip.parameters(), self.hparams.lr, (0.9, 0.98),
                                      weight_decay=self.hparams.weight_decay)  # fmt: skip
        steps = self.hparams.steps
        rate = lambda s: min((s + 1) / 100, 0.02 + 0.98 * (0.5 + 0.5 * np.cos(np.pi * min(s / steps, 1))))  # noqa: E731
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, rate), "interval": "step"}]


class Captioned(torch.utils.data.IterableDataset):
    """Batches (images (B, 3, H, W) in [0, 1], their facts, texts, the facts the texts mention) from one seed."""

    def __init__(self, pictures: np.ndarray, first: int, batch: int, seed: int, skip: int = 0):
        self.pictures, self.first, self.batch, self.seed, self.skip = pictures, first, batch, seed, skip
        self.scenes = [scene(first + k) for k in range(len(pictures))]

    def __iter__(self):
        step = self.skip
        while True:
            rng = np.random.default_rng((self.seed, step))
            chosen = np.sort(rng.choice(len(self.pictures), self.batch, replace=False))
            images = torch.from_numpy(self.pictures[chosen]).permute(0, 3, 1, 2).float() / 255
            scenes = [self.scenes[k] for k in chosen]
            texts, said = zip(*(caption(s, rng) for s in scenes), strict=True)
            yield images, [s.facts for s in scenes], list(texts), list(said)
            step += 1

    def captions(self, seed: int):
        """Pairs of text and facts without end."""
        rng = np.random.default_rng((self.seed, seed, 1))
        while True:
            yield caption(self.scenes[rng.integers(len(self.scenes))], rng)
