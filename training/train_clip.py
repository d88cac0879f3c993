"""The CLIP of the embedded pair: OpenAI's network, made small, taught to see what its gradients would paint.

Telling scenes apart is easy and says nothing about guidance: a network that only does that is soon satisfied by
garbage. So pictures are spoilt, and the gradient of their likeness to a caption must point at what they were: that is
what turns it from noise into shapes.
"""

from __future__ import annotations

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from vqclip.cutouts import Augment, Cutouts, resampling
from vqclip.perceptor import MEAN, STD, openai_clip

from .batches import LOOKS, Batch, Stock, Vocabulary
from .captions import FACTS, all_parts, marked, parts
from .data import floats
from .gradient import look, uphill
from .kin import SIZE
from .repaint import spoil
from .scenes import HELD_OUT
from .walkers import Walkers

SUMS = 8.0  # against telling
NOISE = 0.05  # of glimpses
LEAST_SEEN = 0.004  # of a glimpse: less of a thing says nothing about the way to it
COARSE = 8  # pixels of a glimpse: what squares of this side lose of a direction is compared by itself too


class Sums(nn.Module):
    """What each part of a caption adds to where its text lies: a caption is to lie where the sum of its parts does.

    Told only of what goes together in pictures, a text tower has no reason to put what never did anywhere near its
    parts: of the CLIP of 25,000 steps, "desert" and "night" asked for together were something else. With the sums in
    place of its texts, the ground was right in 21 of 30 pictures of pairs that it never saw, not in 8.
    """

    def __init__(self, width: int):
        super().__init__()
        rows = {part: row for row, part in enumerate(all_parts())}
        of_facts = torch.zeros(len(FACTS), len(rows))
        for line, fact in zip(of_facts, FACTS, strict=True):
            line[[rows[part] for part in parts(fact)]] = 1
        self.register_buffer("of_facts", of_facts, persistent=False)
        self.adds = nn.Parameter(0.02 * torch.randn(len(rows) + 1, width))  # the last row is in every sum

    def counts(self, said: Tensor) -> Tensor:
        """Which of FACTS texts mention (T, F) bool -> which rows of `adds` are in their sums (T, P + 1), 0 or 1."""
        return F.pad((said.float() @ self.of_facts).clamp(max=1), (0, 1), value=1.0)

    def forward(self, said: Tensor) -> Tensor:
        """Which of FACTS texts mention (T, F) bool -> unit rows (T, D)."""
        return F.normalize(self.counts(said) @ self.adds, dim=1)

    def fit(self, said: Tensor, read: Tensor) -> None:
        """Take the sums nearest to where texts lie already: said (T, F) bool, read (T, D)."""
        self.adds.data.copy_(torch.linalg.lstsq(self.counts(said), read, driver="gelsd").solution)


Ways = tuple[Tensor, Tensor]  # matrices (B, S, H) and (B, S, W) that take a picture's lines to a glimpse's


def cut(images: Tensor, ways: Ways) -> Tensor:
    """Of each image (B, C, H, W) one square: (B, C, S, S)."""
    rows, columns = ways
    return rows[:, None] @ images @ columns[:, None].mT


def uncut(glimpses: Tensor, ways: Ways) -> Tensor:
    """What a direction in glimpses (B, C, S, S) is in the images (B, C, H, W) that they were cut of."""
    rows, columns = ways
    return rows[:, None].mT @ glimpses @ columns[:, None]


def ways_to_look(count: int, side: int, size: int, seed: int,
                 device: torch.device | str = "cpu") -> tuple[Ways, Tensor]:  # fmt: skip
    """How glimpses are cut of pictures, as the loop cuts them; most are large, every other is mirrored.

    Also the noise on them (B, 3, S, S), B being `count` and S `size`.
    """
    power = torch.where(torch.arange(count) % 3 == 0, 1.0, 0.2)
    cutter = Cutouts(size, count, power, Augment(noise=NOISE), seed=seed, device=device)
    draw = cutter.draw(side, side)
    length, left, top = draw.boxes.to(device).unbind(1)
    rows, columns = (resampling(length, first, side, size, largest=side) for first in (top, left))
    columns[::2] = columns[::2].flip(1)
    return (rows, columns), draw.grains


def agree(logits: Tensor, right: Tensor, unheard: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy with many right answers: logits (B, T), right (B, T) bool, a weight of each row -> scalar.

    Wrong ones that are `unheard` of, (B, T) bool, are left out.
    """
    likely = logits.masked_fill(unheard & ~right, -torch.inf).log_softmax(1)
    each = -likely.where(right, 0.0).sum(1) / right.sum(1).clamp(min=1)
    return (each * weight).sum() / weight.sum().clamp(min=1e-6)


def never_together() -> Tensor:
    """Which two of FACTS no picture of the training has together, as HELD_OUT has it: (F, F), 0 or 1.

    Telling pictures from all texts but their own would teach that by night it is not a beach, the more so the better
    it is learnt. So a picture is not told from texts that say what was held out beside something that it shows.
    """
    pairs = [pair for pair in HELD_OUT if set(FACTS).issuperset(pair)]
    one, other = (torch.from_numpy(marked([fact] for fact in side)).float() for side in zip(*pairs, strict=True))
    return one.mT @ other + other.mT @ one


def as_runs(first: Tensor, second: Tensor, weight: Tensor, common: Tensor) -> Tensor:
    """What walkers are told, as runs will be: texts (M, D), of which guidance takes out what they have in common (D,).

    The second weighs `weight` (M,), the first what that leaves.
    """
    weight = weight[:, None]
    return F.normalize((1 - weight.abs()) * (first - common) + weight * (second - common), dim=1)


class JudgesTraining(pl.LightningModule):
    """Contrastive learning with many right answers, in which every gradient must point at a right picture.

    What guides a picture is not how alike CLIP finds it to the text, but where that likeness rises. So besides telling
    pictures apart, the likeness of a spoilt picture to a caption must rise towards the whole picture that the caption
    was made of: denoising score matching (Vincent 2011; Song and Ermon 2019, arXiv
    1907.05600) of an energy that is CLIP's own cosine. The many ways to spoil a picture take the place of the noise;
    as most begin at random codes, where a run begins, following the gradient is close to a rectified flow (Liu et al.
    2022, arXiv 2209.03003).

    Args:
        network: arguments of OpenAI's `CLIP`, without the vocabulary's size.
        lr, steps, weight_decay: Muon's (Jordan et al. 2024) for the matrices of the transformers, AdamW's for the rest;
            warm-up of 100 steps, and over the last third of `steps` a straight way down.
        pointing: weight of the gradients' direction against the contrastive loss.
        walkers: what is moved along; they know the mosaic that shows spoilt pictures where the batch brings none.
        stock: all pictures that batches name.
        mean_from: the share of `steps` from which on the mean of the image tower's weights is kept, for `settle`
            (Izmailov et al. 2018, arXiv 1803.05407); 1 keeps none.
        guided: the share of the mean text that is taken out of what walkers are told, as guidance takes it out of what
            runs are. If any, texts learn nothing from walkers: they would put the mean back in.
        seed: of all glimpses; a step draws the same whether or not training was interrupted before it.
        compiled: have torch compile the gradient: a minute first, and it wants a C compiler on a processor.
    """

    def __init__(self, network: dict, lr: float, steps: int, weight_decay: float, pointing: float, walkers: Walkers,
                 stock: Stock, mean_from: float = 1.0, guided: float = 0.0, seed: int = 0,
                 compiled: bool = False):  # fmt: skip
        super().__init__()
        self.save_hyperparameters(ignore=["walkers", "stock"])
        self.automatic_optimization = False
        self.walkers, self.mosaic, self.stock = walkers, walkers.mosaic, stock
        self.vocabulary = Vocabulary(network["context_length"])
        self.clip = openai_clip("model").CLIP(**network, vocab_size=len(self.vocabulary.ids))
        nn.init.constant_(self.clip.logit_scale, np.log(10.0))
        self.mean = AveragedModel(self.clip.visual)
        self.sums = Sums(network["embed_dim"])
        self.register_buffer("apart", never_together(), persistent=False)
        self.uphill = torch.compile(uphill) if compiled else uphill
        self.register_buffer("average", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("spread", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def read(self, rows: Tensor) -> Tensor:
        """Texts, as the vocabulary's rows (T, context) -> unit rows (T, D)."""
        return F.normalize(self.clip.encode_text(rows).float(), dim=1)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        losses = self.losses(batch)
        optimizers, schedulers = self.optimizers(), self.lr_schedulers()
        self.zero_grad()
        weight = {"telling": 1.0, "kin": 1.0, "pointing": self.hparams.pointing, "sums": SUMS}
        self.manual_backward(sum(weight[name] * loss for name, loss in losses.items()))
        nn.utils.clip_grad_norm_(self.clip.parameters(), 1.0)
        for each in (*optimizers, *schedulers):
            each.step()
        if self.global_step // 2 > self.hparams.mean_from * self.hparams.steps:
            self.mean.update_parameters(self.clip.visual)
        self.log_dict(losses)

    def settle(self) -> None:
        """Give the image tower the mean of its weights, where one was kept."""
        if self.mean.n_averaged:
            self.clip.visual.load_state_dict(self.mean.module.state_dict())

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of a batch: "telling", "kin", "pointing", "sums". Moves its walkers a step."""
        at = self.hparams.seed * 1_000_003 + self.global_step // 2  # Lightning counts the steps of both optimisers
        torch.manual_seed(at)
        whole, things, spoilt, share = self._standing(batch)
        standing = len(whole)
        read = self.read(torch.cat([batch.texts, batch.loose]))
        away = 1 - (read * self.sums(torch.cat([batch.said, batch.mentioned]))).sum(1).mean()
        asked = read[: len(batch.texts)]
        if len(batch.walkers):
            first, second = read[standing : len(asked)], read[len(asked) :][: len(batch.walkers)]
            told = as_runs(first, second, batch.weights, self.hparams.guided * read.mean(0))
            asked = torch.cat([asked[:standing], told.detach() if self.hparams.guided else told])
            goal, place = self._walking(batch)
            whole, things = torch.cat([whole, goal]), torch.cat([things, place])
            spoilt = torch.cat([spoilt, self.walkers(batch.walkers)])
            spoilt_by = self.walkers.share[batch.walkers].flatten()
            share = torch.cat([share, torch.where(batch.weights == 0, spoilt_by, 1)])  # of two texts neither is right
        everyone = torch.arange(len(whole), device=whole.device)
        looks = torch.cat([everyone[:standing], everyone[standing:].repeat(LOOKS)])
        shown, said = batch.facts[looks], batch.said[looks].float()
        right = (~shown).float() @ said.mT == 0  # (B, T): nothing said is not so
        unheard = shown.float() @ self.apart @ said.mT > 0
        read, asked, spoilt, whole, things, share = (x[looks] for x in (read, asked, spoilt, whole, things, share))
        ways, grains = self._look(len(whole), whole.shape[-1], at)
        with torch.autocast(whole.device.type, enabled=False):  # bfloat16 is too coarse to tell likenesses apart
            clear, goals, things = (cut(x.float(), ways) for x in (spoilt, whole, things))
            glimpses, things = (clear + grains).clamp(0, 1), things.clamp(0, 1)
            seen, uphill = self.uphill(dict(self.clip.visual.named_parameters()), glimpses, asked, self.average,
                                       self.spread, self._computed_in)  # fmt: skip
            if len(batch.walkers):
                led = uncut(uphill.detach(), ways)[standing:].unflatten(0, (LOOKS, -1)).sum(0)
                self.walkers.walk(batch.walkers, led)
            logits = self.clip.logit_scale.exp().clamp(max=30) * seen @ read.T  # (B, T)
            return {"telling": agree(logits, right, unheard, (1 - share) ** 2), "kin": self._kin(batch, at),
                    "pointing": ahead(uphill, goals - clear, share, things), "sums": away}  # fmt: skip

    def _standing(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of scenes and pairs of kin: whole (B, 3, H, W), their things (B, 1, H, W), spoilt and by what share (B,)."""
        stock, (become, are) = self.stock, batch.pairs.unbind(1)
        whole = floats(torch.cat([stock.pictures[batch.scenes], stock.kin[become]]))
        things = torch.cat([stock.places[batch.scenes], stock.kin_places[become] | stock.kin_places[are]])
        spoilt = floats(torch.cat([stock.painted[batch.painted], stock.kin[are]]))
        share = torch.cat([stock.share[batch.painted], torch.ones(len(are), device=whole.device)])
        tiled = len(whole) - len(spoilt)
        if tiled:
            z, tiled_share = spoil(self.mosaic.latent(whole[:tiled]), self.mosaic.codebook)
            spoilt, share = torch.cat([self.mosaic(self.mosaic.codes(z)), spoilt]), torch.cat([tiled_share, share])
        return whole, things[:, None].float(), spoilt, share

    def _walking(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Put new walkers on their way; of each that has its turn the nearest goal, (M, 3, H, W), and its things."""
        stock, which = self.stock, batch.walkers
        stock.goals[batch.aimed], stock.goal_places[batch.aimed] = batch.goals, batch.places
        goals = floats(stock.goals[which].flatten(0, 1)).unflatten(0, (len(which), -1))
        places = stock.goal_places[which][:, :, None].float()
        self.walkers.begin(which[batch.new], goals[batch.new, 0])
        return self.walkers.goal(which, goals, places)

    def _kin(self, batch: Batch, seed: int) -> Tensor:
        """How badly pictures tell their own text from those of their kin, and texts their picture."""
        count = len(batch.families)
        numbers = batch.families[:, None] + torch.arange(SIZE, device=batch.families.device)
        pictures = floats(self.stock.kin[numbers.flatten()])  # (R * SIZE, 3, H, W)
        z = self.mosaic.latent(pictures)
        share = torch.rand(len(z), 1, 1, 1, device=z.device) * 0.6
        share[::2] = 0  # every other as it is, the others as codes on their way
        pictures[1::2] = self.mosaic(self.mosaic.codes(z.lerp(self.walkers.soft(len(z)), share)))[1::2]
        ways, grains = self._look(len(pictures), pictures.shape[-1], seed + 1)
        glimpses = (cut(pictures, ways) + grains).clamp(0, 1)
        weights = {name: value.to(self._computed_in) for name, value in self.clip.visual.named_parameters()}
        seen = look(weights, (glimpses - self.average) / self.spread).unflatten(0, (count, SIZE))  # (R, SIZE, D)
        with torch.autocast(pictures.device.type, self._computed_in, enabled=self._computed_in != torch.float32):
            read = self.read(batch.kin_texts).unflatten(0, (count, SIZE))
        logits = (self.clip.logit_scale.exp().clamp(max=30) * seen @ read.mT).flatten(0, 1)  # (R * SIZE, SIZE)
        own = torch.arange(SIZE, device=logits.device).repeat(count)
        backwards = logits.unflatten(0, (count, SIZE)).mT.flatten(0, 1)
        return (F.cross_entropy(logits, own) + F.cross_entropy(backwards, own)) / 2

    @property
    def _computed_in(self) -> torch.dtype:
        """What Lightning's precision would have the towers compute in."""
        device = self.average.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32

    def _look(self, count: int, side: int, seed: int) -> tuple[Ways, Tensor]:
        return ways_to_look(count, side, self.clip.visual.input_resolution, seed, self.average.device)

    def configure_optimizers(self):
        lr, decay = self.hparams.lr, self.hparams.weight_decay
        matrices, others = [], []
        for name, p in self.clip.named_parameters():
            (matrices if "resblocks" in name and p.ndim == 2 else others).append(p)
        both = [torch.optim.Muon(matrices, lr, decay, adjust_lr_fn="match_rms_adamw"),
                torch.optim.AdamW(others, lr, (0.9, 0.98), weight_decay=decay)]  # fmt: skip
        rate = lambda s: min((s + 1) / 100, 1.0, max(0.0, 3 * (1 - s / self.hparams.steps)))  # noqa: E731
        both[1].add_param_group({"params": [self.sums.adds], "lr": 10 * lr, "weight_decay": 0.0})
        return both, [torch.optim.lr_scheduler.LambdaLR(each, rate) for each in both]


def ahead(uphill: Tensor, way: Tensor, share: Tensor, things: Tensor) -> Tensor:
    """1 - the cosine between directions (B, 3, S, S) in a glimpse, `uphill` and the `way` to go.

    Half of it for each picture by itself, half over the batch as one vector, so that gradients also are as long as
    there is far to go; of the whole direction, of its detail, which colours would drown, and of what of it is in the
    things' places (B, 1, S, S), which sky and land would.
    """
    cosines, far = [], (share > 0.05).float()
    coarse = [F.interpolate(F.avg_pool2d(x, COARSE), scale_factor=COARSE) for x in (uphill, way)]
    seen = far * (things.mean((1, 2, 3)) > LEAST_SEEN)
    for up, to, counts in ((uphill, way, far), (uphill - coarse[0], way - coarse[1], far),
                           (uphill * things, way * things, seen)):  # fmt: skip
        cosines += [
            (F.cosine_similarity(up.flatten(1), to.flatten(1), dim=1) * counts).sum() / counts.sum().clamp(min=1),
            F.cosine_similarity(up.flatten(), to.flatten(), 0),
        ]
    return 1 - torch.stack(cosines).mean()
