"""The first look at a graphics card, part by part, none of which stops another: `python -m benchmarks.probe`.

    python -m benchmarks.probe                  all parts, at the published sizes, in about 75 seconds
    python -m benchmarks.probe steps levers     some of them
    python -m benchmarks.probe --small --device cpu       does the script itself work
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass
from statistics import median

T0 = time.perf_counter()

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

import vqclip  # noqa: E402
from vqclip import decoder, memory, tower  # noqa: E402
from vqclip.cutouts import resampling  # noqa: E402
from vqclip.ops import clamp_with_grad  # noqa: E402

from .measure import settle  # noqa: E402
from .models import Models  # noqa: E402
from .profile import stages  # noqa: E402
from .rows import Bench, decoding, overhead  # noqa: E402

PARTS: dict[str, tuple[int, object]] = {}


def part(seconds: int):
    def enter(function):
        PARTS[function.__name__] = seconds, function
        return function

    return enter


def say(*words) -> None:
    print(*words, flush=True)


@dataclass(frozen=True)
class Quick(Models):
    """Built where they live, which spares seconds."""

    def painter(self, precision: str = "float32"):
        with torch.device(self.device):
            return super().painter(precision)

    def judge(self, precision: str = "float32"):
        with torch.device(self.device):
            return super().judge(precision)


@dataclass(frozen=True)
class QuickBench(Bench):
    @property
    def models(self):
        return Quick("small" if self.quick else "full", self.device)


class Here:
    """What the parts share."""

    def __init__(self, device: torch.device, small: bool):
        self.device, self.small, self.cuda = device, small, device.type == "cuda"
        self.models = Quick("small" if small else "full", device)
        self.ours: tuple = ()

    def pick(self, full: int, small: int) -> int:
        return small if self.small else full

    def run(self, size: int, cutouts: int, **changes):
        if not self.ours:
            self.ours = self.models.painter("auto"), self.models.judge("auto")
        settings = dict(size=(size, size), cutouts=cutouts, augment="none", optimizer="adam", lr=0.1, churn=0,
                        steps=10**6, device=str(self.device))  # fmt: skip
        return vqclip.generate("a desert at sunset:0.67 | snow on mountains:0.33", *self.ours,
                               **{**settings, **changes})  # fmt: skip

    def clock(self, function, tries: int = 7, warm: int = 2) -> float:
        """Median milliseconds of a call, until the device is done."""
        took = []
        for turn in range(tries + warm):
            settle(self.device)
            start = time.perf_counter()
            function()
            settle(self.device)
            took.append(1000 * (time.perf_counter() - start))
        return median(took[warm:])


def cosine(a, b) -> str:
    a, b = a.detach().double().flatten().cpu(), b.detach().double().flatten().cpu()
    return f"cosine {F.cosine_similarity(a, b, dim=0).item():.6f} relative {((a - b).norm() / b.norm()).item():.2e}"


# Parts


@part(15)
def ceilings(here: Here) -> None:
    """What products and copies reach."""
    side = here.pick(8192, 256)
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)):
        n = side if dtype != torch.float32 else side // 2
        a, b = torch.randn(2, n, n, device=here.device).to(dtype)
        ms = here.clock(lambda: a @ b)
        say(f"  {name} {n}^3 product: {2 * n**3 / ms / 1e9:.1f} TFLOP/s")
    some = torch.randint(0, 255, (here.pick(2**31, 2**20),), dtype=torch.uint8, device=here.device)
    other = torch.empty_like(some)
    say(f"  copy: {2 * some.nbytes / here.clock(lambda: other.copy_(some)) / 1e9:.3f} TB/s read and written")
    one = torch.zeros((), device=here.device)
    say(f"  an empty launch and wait {here.clock(lambda: one.add_(1)) * 1000:.0f} us; 100 launches "
        f"{here.clock(lambda: [one.add_(1) for _ in range(100)]) * 10:.1f} us each")  # fmt: skip


@part(30)
def smoke(here: Here) -> None:
    """Does it paint at all: the embedded pair, its sessions, its batches."""
    device, size = str(here.device), 128
    start = time.perf_counter()
    run = vqclip.generate("a red circle", seed=3, steps=6, device=device)
    frames = list(run)
    frames[-1].pil.load()
    say(f"  7 steps with their load {time.perf_counter() - start:.2f} s; painter {run.latent.vqgan.precision}, losses",
        [round(sum(map(float, frame.losses.values())), 5) for frame in frames])  # fmt: skip
    there = vqclip.generate("a red circle", seed=3, steps=6, device="cpu", precision="float32")
    say("  same start on the CPU:", torch.equal(next(there).codes, frames[0].codes.cpu()))

    grads = {}
    for precision, where in (("auto", device), ("float32", device), ("float32", "cpu")):
        run = vqclip.generate("a red circle", seed=3, steps=6, device=where, precision=precision, optimizer="adam")
        next(run)
        grads[precision, where] = run.latent.z.grad
    exact = grads["float32", "cpu"]
    for key, grad in grads.items():
        say(f"  gradient {key} against float32 on the CPU: {cosine(grad, exact)}")

    with tempfile.TemporaryDirectory() as home:
        run = vqclip.generate("a red circle", seed=3, steps=6, device=device)
        session = vqclip.Session.create(home, run)
        kept = []
        for frame in session.record(run):
            kept.append(frame.codes)
            if frame.step == 3:
                break
        session = vqclip.Session.open(session.path) if hasattr(vqclip.Session, "open") else vqclip.Session(session.path)
        resumed = session.resume()
        kept += [frame.codes for frame in session.record(resumed)]
        alike = [torch.equal(a.cpu(), b.codes.cpu()) for a, b in zip(kept, frames, strict=True)]
        say(f"  recorded, broken off and resumed: codes as without a session {alike}")
    batch = vqclip.generate_batch("a red circle", seeds=range(4), steps=4, device=device)
    made = list(batch)
    say(f"  batch of 4, at once {batch.at_once}: {len(made)} steps,",
        [round(sum(map(float, frame.losses.values())), 5) for frame in made[-1]])  # fmt: skip
    for how in vqclip.cutouts.AUGMENTS if hasattr(vqclip, "cutouts") else ("mse", "nerdyrodent"):
        run = vqclip.generate("a red circle", steps=2, device=device, augment=how, chunk=5, cutouts=12, size=(96, 64))
        say(f"  augment {how}, in chunks: loss {sum(map(float, list(run)[-1].losses.values())):.5f}")
    run = vqclip.generate("a red circle | blue:-0.3:0.1", steps=3, device=device, losses="tv:0.5 | saturation:0.2",
                          ema=0.9, init_weight=0.1, cutter="pooled", augment="updated", size=(size, 96))  # fmt: skip
    say("  with all else:", {name: round(float(loss), 5) for name, loss in list(run)[-1].losses.items()})


@part(30)
def steps(here: Here) -> None:
    """The plain loop's step and ours."""
    for size, cutouts in ((512, 32), (512, 64), (256, 64)):
        size, cutouts = here.pick(size, 32), here.pick(cutouts, 4)
        run = here.run(size, cutouts)
        ours = here.clock(lambda: next(run), 9, 3)
        theirs = here.clock(here.models.reference(size, cutouts), 4, 2)
        say(f"  {size}/{cutouts}: plain {theirs:.2f} ms, ours {ours:.2f} ms, {theirs / ours:.2f} times; at once "
            f"{run.judges()[0][1].at_once}, sparing {run.latent.vqgan.sparing}")  # fmt: skip
        if cutouts == 32 or here.small:
            for turn in range(2):  # the second counts
                found = stages(run, here.device)
            say("   ", ", ".join(f"{name} {1000 * seconds:.2f}" for name, seconds in found.items()), "ms")


def body(here: Here, run, crops=torch.float32):
    """Forward and backward of a step with crops that stay, as a function without arguments."""
    latent, judge = run.latent, run.judges()[0][1]
    H, W = latent().shape[2:]
    side, left, top = judge.cutouts.draw(H, W).boxes.to(here.device).unbind(1)
    rows = resampling(side, top, H, judge.cutouts.size, min(H, W)).to(crops)
    columns = resampling(side, left, W, judge.cutouts.size, min(H, W)).to(crops)
    n, size, _ = rows.shape

    def compute():
        image = latent()
        lines = image[0].transpose(0, 1).reshape(H, 3 * W).to(crops)
        tall = (rows.reshape(n * size, H) @ lines).view(n, size * 3, W)
        cuts = (tall @ columns.transpose(1, 2)).view(n, size, 3, size).transpose(1, 2).float()
        judge.of(judge.perceptor.encode_image(clamp_with_grad(cuts))).backward()

    return compute


def captured(here: Here, compute, run):
    """The same as a graph of the card's, to be replayed; and its eager milliseconds."""
    def fresh():
        run.latent.z.grad = None
        compute()

    eager = here.clock(fresh, 5, 2)
    if not here.cuda:
        return fresh, eager
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            fresh()
    torch.cuda.current_stream().wait_stream(side)
    run.latent.z.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        compute()
    return graph.replay, eager


class FusedPair(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, groups, eps):
        from vqclip import fused

        y, sums = fused.norm_swish(x, weight, bias, groups, eps)
        ctx.save_for_backward(x, sums, weight, bias)
        ctx.how = groups, eps
        return y

    @staticmethod
    def backward(ctx, grad):
        from vqclip import fused

        x, sums, weight, bias = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        return fused.norm_swish_back(grad, x, sums, weight, bias, *ctx.how), None, None, None, None


def fused_pair(x, norm):
    return FusedPair.apply(x.contiguous(memory_format=torch.channels_last), norm.weight, norm.bias, norm.num_groups,
                           norm.eps)  # fmt: skip


def attends(which: str):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if which == "spelled":
        return lambda q, k, v: tower._Spelled.apply(q, k, v)

    def attend(q, k, v):
        with sdpa_kernel(getattr(SDPBackend, which)):
            return F.scaled_dot_product_attention(q, k, v)

    return attend


@part(45)
def levers(here: Here) -> None:
    """Forward and backward as a graph, which shows what the card itself takes, lever by lever; each keeps those before."""
    size, cutouts = here.pick(512, 32), here.pick(32, 4)
    run = here.run(size, cutouts)
    painter = run.latent.vqgan
    norm_swish, attend, grads, best = decoder.norm_swish, tower.attend, {}, None

    def measure(name: str, crops=torch.float32):
        nonlocal best
        try:
            start = time.perf_counter()
            replay, eager = captured(here, body(here, run, crops), run)
            took = here.clock(replay, 9, 2)
            grads[name] = run.latent.z.grad.clone()
            likes = cosine(grads[name], next(iter(grads.values())))
            say(f"  {name}: eager {eager:.2f} ms, replayed {took:.2f} ms; {likes} "
                f"({time.perf_counter() - start:.1f} s to try)")  # fmt: skip
            if best is None or took < best[0]:
                best = took, replay, name
        except Exception as error:
            say(f"  {name}: {type(error).__name__}: {str(error)[:300]}")

    state = run.state()["cutouts"]
    draws = lambda: run.judges()[0][1].cutouts.restore(next(iter(state.values())))  # noqa: E731

    def again(name: str, crops=torch.float32):
        draws()  # the same crops for each
        measure(name, crops)

    try:
        again("as it is")
        if here.cuda:
            for which in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH", "spelled"):
                tower.attend = attends(which)
                again(f"attention {which}")
            tower.attend = attend
        painter.decoder.to(memory_format=torch.channels_last)
        again("channels last, torch's norms")
        if here.cuda:
            decoder.norm_swish = fused_pair
            again("channels last, fused norms")
            torch.set_float32_matmul_precision("high")
            again("and TF32 in products")
            torch.set_float32_matmul_precision("highest")
        again("and crops in bfloat16", torch.bfloat16)
        if here.cuda:
            torch.backends.cudnn.benchmark = True
            again("and cudnn.benchmark", torch.bfloat16)
            say("  kernels of the best,", best[2])
            kernels(here, best[1])
    finally:
        torch.backends.cudnn.benchmark = False
        decoder.norm_swish, tower.attend = norm_swish, attend
        painter.decoder.to(memory_format=torch.contiguous_format)


def kernels(here: Here, function, lines: int = 24) -> None:
    """What a call launches: the kernels that take the most, how many there are, how busy the card is."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if here.cuda else [])]
    settle(here.device)
    with profile(activities=kinds) as recorded:
        function()
        settle(here.device)
    took, count = Counter(), Counter()
    runtime = Counter()
    for event in recorded.events():
        if event.device_type == DeviceType.CUDA or not here.cuda:
            took[event.name] += event.device_time_total if here.cuda else event.cpu_time_total
            count[event.name] += 1
        elif event.name.startswith(("cudaStreamSync", "cudaDeviceSync", "cudaMemcpy", "cudaLaunch", "cuLaunch",
                                    "cudaGraphLaunch", "cudaEventSync")):  # fmt: skip
            runtime[event.name] += 1
    say(f"  {sum(count.values())} kernels and copies, {sum(took.values()) / 1000:.2f} ms of them; calls {dict(runtime)}")
    for name, micro in took.most_common(lines):
        say(f"    {micro / 1000:7.3f} ms {count[name]:5} x {name[:140]}")


@part(20)
def eager(here: Here) -> None:
    """What a step of ours launches as it is."""
    run = here.run(here.pick(512, 32), here.pick(32, 4))
    for _ in range(3):
        next(run)
    took = here.clock(lambda: next(run))
    say(f"  a step {took:.2f} ms by the clock")
    kernels(here, lambda: next(run), 15)


@part(25)
def heights(here: Here) -> None:
    """Memory at its height where little is free, as a run chooses by itself."""
    if not here.cuda:
        return
    here.run(64, 2)  # the models are there
    for size, limit, sparing in ((512, 0, False), (1024, 0, False), (1024, 12, False), (2048, 24, False),
                                 (1024, 0, True), (2048, 0, True)):  # fmt: skip
        try:
            torch.cuda.empty_cache()
            free, total = torch.cuda.mem_get_info()
            ballast = torch.empty(max(0, free - (limit * 2**30 - (total - free))) if limit else 0, dtype=torch.uint8,
                                  device=here.device)  # fmt: skip
            outside = total - free - torch.cuda.memory_reserved()
            torch.cuda.reset_peak_memory_stats()
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                run = here.run(size, 32, chunk=8 if sparing else 0)
                run.latent.vqgan.sparing |= sparing
                need = memory.needed(run)
                took = here.clock(lambda run=run: next(run), 2, 1)
            peak, reserved = (ask() - ballast.nbytes for ask in (torch.cuda.max_memory_allocated,
                                                                 torch.cuda.max_memory_reserved))  # fmt: skip
            say(f"  {size}, {limit or 'all'} GiB to have{', sparing by hand' * sparing}: allocated {peak / 2**30:.2f}, "
                f"reserved {reserved / 2**30:.2f}, besides {outside / 2**30:.2f} GiB; counted "
                f"{(need.step + need.weights) / 2**30:.2f} (painter {need.painter / 2**30:.2f} judges "
                f"{need.judges / 2**30:.2f}); sparing {run.latent.vqgan.sparing}, at once "
                f"{run.judges()[0][1].at_once}; {took:.1f} ms a step", [str(one.message)[:120] for one in warned])  # fmt: skip
        except Exception as error:
            say(f"  {size} with {limit}: {type(error).__name__}: {str(error)[:300]}")
        finally:
            run = ballast = None
            here.ours[0].sparing = False


@part(15)
def batches(here: Here) -> None:
    """Eight seeds at once against one after the other."""
    for size, cutouts in ((256, 32), (512, 32)):
        size, cutouts = here.pick(size, 32), here.pick(cutouts, 4)
        settings = here.run(size, cutouts).settings
        one, all_ = (vqclip.generate_batch(None, *here.ours, settings=settings, seeds=range(8)) for _ in range(2))
        theirs = here.clock(lambda one=one: [next(run) for run in one.runs], 3, 1)
        ours = here.clock(lambda all_=all_: next(all_), 3, 1)
        say(f"  {size}/{cutouts}: one by one {theirs:.1f} ms, at once ({all_.at_once}) {ours:.1f} ms, "
            f"{theirs / ours:.2f} times")  # fmt: skip


@part(20)
def beside(here: Here) -> None:
    """What a run adds to its arithmetic, and what decoding takes."""
    bench = QuickBench(here.device, 7, here.small)
    found = overhead(bench)
    say(f"  overhead {found.value:.1f} % ({found.low:.1f} to {found.high:.1f}); recorded "
        f"{1000 * median(found.raw['theirs']):.2f} ms, bare {1000 * median(found.raw['ours']):.2f}")  # fmt: skip
    found = decoding(bench, here.pick(512, 48))
    say(f"  decoding {found.value:.3f} of a step")
    run = here.run(here.pick(512, 32), here.pick(32, 4))
    frame = next(run)
    say(f"  draw {here.clock(lambda: run.judges()[0][1].cutouts.draw(512, 512)):.3f} ms, its picture for people "
        f"{here.clock(lambda: frame.pil):.3f} ms, state {here.clock(lambda: run.state()):.3f} ms, optimiser "
        f"{here.clock(lambda: run.optimizer.step()):.3f} ms")  # fmt: skip
    draw = run.judges()[0][1].cutouts.draw(512, 512).to(here.device)
    image = torch.rand(1, 3, 512, 512, device=here.device)
    say(f"  crops there {here.clock(lambda: run.judges()[0][1].cutouts(image, draw)):.3f} ms")


@part(40)
def compiles(here: Here) -> None:
    """torch.compile of a judge's tower, if that ends in time."""
    if not here.cuda:
        return
    run = here.run(here.pick(512, 32), here.pick(32, 4))
    visual = run.judges()[0][1].perceptor.network.visual
    forward = visual.forward
    try:
        start = time.perf_counter()
        visual.forward = torch.compile(forward, dynamic=False)
        replay, eager_ = captured(here, body(here, run), run)
        say(f"  judge compiled: {time.perf_counter() - start:.1f} s; eager {eager_:.2f}, replayed "
            f"{here.clock(replay):.2f} ms")  # fmt: skip
    finally:
        visual.forward = forward


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}")
    ask.add_argument("--small", action="store_true")
    ask.add_argument("--device", default="cuda")
    ask.add_argument("--budget", type=float, default=75, help="seconds for all of it")
    asked = ask.parse_args()
    here = Here(torch.empty(0, device=asked.device).device, asked.small)
    name = torch.cuda.get_device_name() if here.cuda else "cpu"
    say(f"{name}, torch {torch.__version__}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; imports took "
        f"{time.perf_counter() - T0:.1f} s; vqclip is {vqclip.__file__}")  # fmt: skip

    def stop(*_):
        raise TimeoutError("this part took too long")

    signal.signal(signal.SIGALRM, stop)
    for title in asked.parts or PARTS:
        seconds, function = PARTS[title]
        left = asked.budget - (time.perf_counter() - T0)
        start = time.perf_counter()
        if left < 2:
            say(f"{title}: no time left")
            continue
        signal.setitimer(signal.ITIMER_REAL, min(seconds, left))
        say(f"{title}: {function.__doc__}")
        try:
            function(here)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            say("  " + "  ".join(traceback.format_exc().splitlines(True)[-9:]))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            if here.cuda:
                torch.cuda.empty_cache()
        say(f"  ({time.perf_counter() - start:.1f} s)")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
