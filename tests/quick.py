"""The cheapest painter and judge that the loop takes, for tests of many steps: about 10 ms each.

    run = quick.run(steps=20, seed=3)     # a vqclip.Run of 16x16 pixels, 8x8 codes

The judge is a fixed random projection, so its words mean nothing; what it likes is as definite as with CLIP.
"""

import time

import torch
import torch.nn.functional as F

import vqclip

DDCONFIG = dict(double_z=False, z_channels=8, resolution=16, in_channels=3, out_ch=3, ch=32, ch_mult=[1, 1],
                num_res_blocks=1, attn_resolutions=[], dropout=0.0)  # fmt: skip


def seeded(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def painter(seed=0):
    """A VQGAN of f = 2, K = 32, C = 8 with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = vqclip.VQGAN(DDCONFIG, n_embed=32, embed_dim=8)
    model.codebook.data.copy_(seeded(32, 8, seed=seed))
    model.name = "quick"
    return model.eval().requires_grad_(False)


class Judge:
    """A perceptor as `perceptor.Perceptor` asks for, D = 16, S = 8."""

    def __init__(self, name="judge", size=8):
        self.name, self.size = name, size
        self.eye = seeded(3 * size * size, 16)

    def encode_text(self, texts):
        return F.normalize(torch.cat([seeded(1, 16, seed=sum(text.encode())) for text in texts]), dim=1)

    def encode_image(self, cutouts):
        return F.normalize((cutouts - 0.5).flatten(1) @ self.eye, dim=1)


def run(prompts="desert:50 | snow:25", *, vqgan=None, clip=None, **changes):
    changes = {"size": 16, "steps": 10, "cutouts": 2, "device": "cpu", **changes}
    return vqclip.generate(prompts, vqgan or painter(), clip or Judge(), **changes)


def paint(run):
    """The codes of all further frames: (T, h, w)."""
    return torch.stack([frame.codes for frame in run])


def until(condition):
    """Wait for what another thread brings."""
    for _ in range(60_000):
        if condition():
            return
        time.sleep(0.001)  # lets it have its turn
    raise AssertionError("it did not come")
