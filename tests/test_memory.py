"""Out of memory: the same step is done again with the same draws, in smaller chunks, and nothing is lost or doubled."""

import os
import platform
import subprocess
import sys
import warnings
import weakref
from types import SimpleNamespace

import pytest
import quick
import torch

import vqclip
from vqclip import catalogue, checkpoints
from vqclip.cutouts import Cutouts
from vqclip.memory import PIXEL, _of_machine, free, is_exhaustion, kept, needed, on_meta, plenty, room
from vqclip.perceptor import build_clip, openai_clip
from vqclip.preflight import look
from vqclip.run import OutOfMemory


def cuda():
    """What a graphics card says, without one."""
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def cpu():
    """What torch's allocator says: it is really asked for a petabyte."""
    torch.empty(1 << 50, dtype=torch.uint8)


class Fails(torch.autograd.Function):
    """Passes everything, until the way back."""

    @staticmethod
    def forward(ctx, x, how):
        ctx.how = how
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.how()


class Hungry(quick.Judge):
    """A judge for whom memory runs out above `limit` cutouts at once, from its call number `since` on."""

    def __init__(self, limit, how=cuda, since=0, back=False, name="judge"):
        super().__init__(name)
        self.limit, self.how, self.since, self.back = limit, how, since, back
        self.calls, self.seen = 0, []

    def encode_image(self, cutouts):
        self.calls += 1
        self.seen.append(len(cutouts))
        if len(cutouts) > self.limit and self.calls > self.since:
            if not self.back:
                self.how()
            cutouts = Fails.apply(cutouts, self.how)
        return super().encode_image(cutouts)


RUN = {"cutouts": 8, "steps": 6, "augment": "nerdyrodent", "seed": 3}


def frames(clip=None, **changes):
    run = quick.run(clip=clip, **RUN | changes)
    return list(run), run


def alike(some, others):
    assert [frame.step for frame in some] == [frame.step for frame in others] == list(range(7))
    for ours, theirs in zip(some, others, strict=True):
        assert torch.equal(ours.codes, theirs.codes) and ours.losses == theirs.losses


@pytest.mark.parametrize("back", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("how", [cuda, cpu])
def test_a_run_goes_on_in_smaller_chunks(how, back):
    with pytest.warns(UserWarning) as said:
        made, run = frames(Hungry(3, how, back=back))
    halved = [f"from here {now} cutouts are judged at once instead of {before}" for now, before in ((4, 8), (2, 4))]
    first = "from here the painter keeps little and takes longer"
    assert [str(one.message).partition(": ")[2] for one in said] == [first, *halved]
    expected, other = frames(chunk=2)
    alike(made, expected)
    for ours, theirs in zip(run.state()["cutouts"].values(), other.state()["cutouts"].values(), strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)  # not one draw more
    assert run.state()["latent"]["z"].equal(other.state()["latent"]["z"])


def test_in_the_middle_of_a_run_frames_before_stay_as_they_were():
    hungry = Hungry(4, since=3)
    with pytest.warns(UserWarning) as said:
        made, _ = frames(hungry)
    again = "out of memory at step 3, which is done again: from here"
    assert [str(one.message).startswith(again) for one in said] == [True, True]
    assert hungry.seen == [8] * 5 + [4] * 8  # three steps, the one that failed twice, and four in two parts each
    whole, _ = frames()
    assert all(torch.equal(ours.codes, theirs.codes) for ours, theirs in zip(made, whole, strict=True))
    assert [a.losses == b.losses for a, b in zip(made, whole, strict=True)][:3] == [True] * 3


def test_several_judges_share_the_room():
    hungry = Hungry(2, name="hungry")
    with pytest.warns(UserWarning, match="out of memory"):
        made, run = frames([quick.Judge("calm"), hungry])
    assert [judge.at_once for _, judge in run.judges()] == [2, 2]
    alike(made, frames([quick.Judge("calm"), quick.Judge("hungry")], chunk=2)[0])


def test_a_painter_that_keeps_little_paints_the_same():
    painter, grown = quick.painter(), None
    z = torch.rand(1, 8, 16, 24, requires_grad=True)
    plain = kept(lambda: painter.decode(z), painter)
    for painter.sparing in (False, True):
        z.grad = None
        painter.decode(z).pow(2).sum().backward()
        assert grown is None or z.grad.equal(grown)
        grown = z.grad
    assert kept(lambda: painter.decode(z), painter) < plain / 2


def test_where_memory_is_short_the_painter_keeps_little_from_the_start(monkeypatch):
    painter = quick.painter()
    roomy = quick.run(vqgan=painter, **RUN)
    assert not painter.sparing and room(roomy) >= 1
    expected = list(roomy)
    little = needed(roomy).step - 1
    monkeypatch.setattr("vqclip.memory.free", lambda device: little)
    tight = quick.run(vqgan=painter, **RUN)
    assert painter.sparing and room(tight) >= 1
    report = look(tight, free=10**9)
    assert report.need.sparing and "with a painter that keeps little and takes longer" in "\n".join(report.lines())
    alike(list(tight), expected)
    monkeypatch.undo()
    quick.run(vqgan=painter, **RUN)
    assert not painter.sparing


def test_what_costs_least_comes_first_and_the_run_says_what_it_does(monkeypatch):
    """Fewer glimpses at once, as long as there are many; then the painter; then fewer and fewer."""
    run = quick.run(**RUN | {"cutouts": 20})
    whole = look(run, free=10**9)
    told = [run.economise() for _ in range(6)]
    assert told == ["10 cutouts are judged at once instead of 20", "8 cutouts are judged at once instead of 10",
                    "the painter keeps little and takes longer", "4 cutouts are judged at once instead of 8",
                    "2 cutouts are judged at once instead of 4", "1 cutout is judged at once instead of 2"]  # fmt: skip
    assert run.economise() == ""
    monkeypatch.setattr("vqclip.memory.free", lambda device: whole.need.step - 1)
    tight = quick.run(vqgan=quick.painter(), **RUN | {"cutouts": 20})
    assert [judge.at_once for _, judge in tight.judges()] == [10] and not tight.latent.vqgan.sparing
    said, before = ("\n".join(report.lines()) for report in (look(tight), whole))
    assert "10 cutouts judged at a time" in said and "at a time" not in before


def test_a_run_that_goes_on_where_memory_is_short_keeps_to_its_smaller_chunk():
    roomy, tight = quick.run(**RUN), quick.run(chunk=2, **RUN)
    tight.restore(roomy.state())
    assert [judge.at_once for _, judge in tight.judges()] == [2]
    roomy.restore(tight.state())
    assert [judge.at_once for _, judge in roomy.judges()] == [2]


def test_when_one_at_a_time_is_too_much_the_run_stops_at_rest():
    run = quick.run(clip=Hungry(0), **RUN)
    before = run.state()
    with pytest.warns(UserWarning), pytest.raises(OutOfMemory, match="at step 0 .* size=16x16 even with one cutout"):
        next(run)
    after = run.state()
    assert run.step == 0 and after["latent"]["z"].equal(before["latent"]["z"])
    assert after["cutouts"]["judge"]["cutouts"].equal(before["cutouts"]["judge"]["cutouts"])


def test_what_a_step_had_is_let_go_of_though_its_error_is_kept():
    run, pictures = quick.run(cutouts=2), []

    def hungry(image):
        pictures.append(weakref.ref(image))
        cpu()

    run.losses = {"hungry": (1.0, hungry)}
    with pytest.warns(UserWarning), pytest.raises(OutOfMemory) as kept:
        next(run)
    assert kept.value.__cause__.__traceback__ and pictures
    assert not any(picture() is not None for picture in pictures)


def test_a_painter_that_does_not_fit_is_said_too(monkeypatch):
    painter = quick.painter()
    monkeypatch.setattr(painter, "decode", lambda z: cpu())
    with pytest.warns(UserWarning), pytest.raises(OutOfMemory, match="Choose a smaller size"):
        next(quick.run(vqgan=painter, cutouts=2))


def test_a_session_keeps_every_step_once_and_the_chunk(tmp_path):
    run = quick.run(clip=Hungry(3, since=3), **RUN)
    session = vqclip.Session.create(tmp_path, run)
    with pytest.warns(UserWarning, match="out of memory"):
        steps = [frame.step for frame in session.record(run)]
    assert steps == list(range(7)) == [line["step"] for line in session.losses()] and len(session.codes) == 7
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hungry = Hungry(3)
        again = session.resume(run.latent.vqgan, hungry)
        again.steps = 8
        assert [frame.step for frame in session.record(again)] == [7, 8] and set(hungry.seen) == {2}


@pytest.mark.parametrize(
    "error, is_one",
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9.06 GB)"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:98] . DefaultCPUAllocator: not enough memory: you tried"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_which_errors_are_about_memory(error, is_one):
    assert is_exhaustion(error) is is_one


def test_other_errors_are_not_tried_again():
    def broken():
        raise RuntimeError("shapes cannot be multiplied")

    hungry = Hungry(0, broken)
    with pytest.raises(RuntimeError, match="shapes"):
        next(quick.run(clip=hungry, **RUN))
    assert hungry.calls == 1


# What there is


def linux(folder, available=8_000_000, **group):
    (folder / "meminfo").write_text(f"MemTotal:       16000000 kB\nMemAvailable:   {available} kB\n")
    for name, text in group.items():
        (folder / f"memory.{name}").write_text(text)
    return _of_machine(folder / "meminfo", folder)


def test_what_linux_has_left_is_known(tmp_path):
    assert linux(tmp_path) == 8_000_000 * 1024
    assert linux(tmp_path, max="max\n", current="1000\n", stat="anon 900\nfile 100\n") == 8_000_000 * 1024


def test_a_container_has_its_share_and_files_that_were_read_do_not_count(tmp_path):
    group = {"max": "4000000000\n", "current": "3000000000\n", "stat": "anon 1\nfile 2500000000\nfile_mapped 7\n"}
    assert linux(tmp_path, **group) == 3_500_000_000
    assert linux(tmp_path, available=1_000_000, **group) == 1_000_000 * 1024


def test_where_nobody_tells_it_is_not_made_up(tmp_path):
    assert _of_machine(tmp_path / "nowhere", tmp_path) is None
    assert linux(tmp_path, max="4000", current="what") is None


def test_a_graphics_card_is_asked_and_what_torch_holds_unused_counts(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5_000, 16_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 400)
    assert free(torch.device("cuda")) == 5_300


# What a step needs


def test_what_autograd_keeps_is_counted():
    x = torch.ones(1000, requires_grad=True)
    assert kept(lambda: (x * 2).sum()) == 0
    assert kept(lambda: x.sin()) == 4000
    assert kept(lambda: x.sin().exp().sin()) == 8000  # x, and the exp, which two of them keep
    layer = torch.nn.Linear(1000, 10, bias=False).requires_grad_(False)
    assert kept(lambda: layer(x).pow(2), layer) == 40


def test_a_copy_on_meta_has_no_values_and_leaves_the_module_alone(vit):
    hollow = on_meta(vit)
    assert {tensor.device.type for tensor in (*hollow.parameters(), *hollow.buffers())} == {"meta"}
    assert hollow.encode_image(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 48)
    assert vit.mean.device.type == "cpu" and vit.encode_image(torch.rand(2, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize("name", ["vit", "rn"])
def test_the_count_is_that_of_a_real_step(vqgan, name, request, monkeypatch):
    """On meta as with values, but for what a processor's kernels note besides: nothing is assumed about networks."""
    run = vqclip.generate("a", vqgan, request.getfixturevalue(name), size=(48, 32), cutouts=4, device="cpu")
    _, judge = run.judges()[0]
    image = torch.rand(1, 3, 32, 48, requires_grad=True)
    need = needed(run)
    cutouts = Cutouts(judge.cutouts.size, 4, how=judge.cutouts.how)
    real = kept(lambda: judge.perceptor.encode_image(cutouts(image)), judge.perceptor)
    assert real > 500_000 and need.judges == pytest.approx(real, rel=0.1)
    real = kept(lambda: vqgan.decode(torch.rand(1, 8, 16, 24, requires_grad=True)), vqgan)
    assert real > 500_000 and need.painter == pytest.approx(real, rel=0.1)
    monkeypatch.setattr(vqgan, "sparing", True)
    real = kept(lambda: vqgan.decode(torch.rand(1, 8, 16, 24, requires_grad=True)), vqgan)
    assert real < needed(run).painter < need.painter
    assert need.weights == sum(t.nbytes for m in (vqgan, judge.perceptor) for t in (*m.parameters(), *m.buffers()))


def test_plenty_goes_by_what_is_painted_and_judged_and_not_for_large_pictures():
    run = quick.run(clip=[quick.Judge("one"), quick.Judge("other")], **RUN)
    (w, h), judged = run.latent.vqgan.whole(*run.settings.size), 2 * 8 * quick.Judge().size ** 2
    enough = 2 * PIXEL * (w * h + judged)
    assert plenty(run, enough) and not plenty(run, enough - 1) and needed(run).step < enough / 2
    run.settings = run.settings.replace(size=(1024, 1040))
    assert not plenty(run, 10**15)


@pytest.mark.parametrize("name", ["imagenet_f16_16384", "gumbel_f8_8192"])
def test_no_painter_takes_so_much_of_a_pixel_that_plenty_is_too_little(name):
    with checkpoints.blank():
        painter = vqclip.VQGAN(**catalogue.find(name).config).requires_grad_(False)
    run = SimpleNamespace(latent=SimpleNamespace(vqgan=painter), judges=list)
    assert needed(run, size=(1024, 1024)).step < PIXEL * 1024**2


@pytest.mark.parametrize("vision", [
    dict(image_resolution=336, vision_layers=24, vision_width=1024, vision_patch_size=14),
    dict(image_resolution=448, vision_layers=(3, 15, 36, 10), vision_width=128, vision_patch_size=None),
], ids=["ViT-L/14@336px", "RN50x64"])  # fmt: skip
def test_no_judge_takes_so_much_of_a_pixel_that_plenty_is_too_little(vqgan, vision):
    with checkpoints.blank():
        weights = openai_clip("model").CLIP(
            embed_dim=768, context_length=77, vocab_size=49408, transformer_width=768, transformer_heads=12,
            transformer_layers=2, **vision).state_dict()  # fmt: skip
    judge = build_clip(weights, "large")
    seen = SimpleNamespace(perceptor=judge, cutouts=Cutouts(judge.size, 2), at_once=2)
    run = SimpleNamespace(latent=SimpleNamespace(vqgan=vqgan), judges=lambda: [("large", seen)])
    assert needed(run, size=(32, 32)).step < PIXEL * (2 * judge.size**2 + 32**2)


def test_chunks_and_smaller_pictures_need_less(vqgan, vit):
    run = vqclip.generate("a", vqgan, vit, size=64, cutouts=16, device="cpu")
    draws = run.state()["cutouts"]["vit"]["cutouts"]
    whole, four, one, small = needed(run), needed(run, chunk=4), needed(run, chunk=1), needed(run, size=(32, 32))
    assert whole.judges > 3 * four.judges > 9 * one.judges and whole.painter == four.painter > 3 * small.painter
    assert whole.step > four.step > one.step > 1.1 * whole.painter
    assert run.state()["cutouts"]["vit"]["cutouts"].equal(draws)  # looking changes nothing


def test_a_perceptor_that_asks_for_values_is_counted_without_itself(vqgan):
    class Asks(torch.nn.Module):
        name, size = "asks", 8

        def encode_text(self, texts):
            return torch.ones(len(texts), 4) / 2

        def encode_image(self, cutouts):
            return torch.ones(len(cutouts), 4) * float(cutouts.sum())

    run = vqclip.generate("a", vqgan, Asks(), size=32, cutouts=4, device="cpu")
    assert needed(run).judges == needed(vqclip.generate("a", vqgan, quick.Judge(), size=32, cutouts=4)).judges > 0


def test_a_painter_keeps_nothing_where_gradients_go_back_patch_by_patch(vit):
    patchwise = vqclip.VQGAN(quick.DDCONFIG, n_embed=32, embed_dim=8, patches=True).requires_grad_(False)
    z = torch.rand(1, 8, 24, 24, requires_grad=True)
    assert kept(lambda: patchwise.decode(z), patchwise) == 0
    plain = vqclip.VQGAN(quick.DDCONFIG, n_embed=32, embed_dim=8).requires_grad_(False)
    needs = [needed(vqclip.generate("a", model, vit, size=48, cutouts=4, device="cpu")) for model in (patchwise, plain)]
    assert 0 < needs[0].painter < 0.9 * needs[1].painter and needs[0].judges == needs[1].judges


BLOCKS = """
import resource
import sys
from pathlib import Path
import torch
import vqclip
from vqclip import memory

def held():
    return int(Path("/proc/self/statm").read_text().split()[1])  # pages

if "short" in sys.argv:
    memory.free = lambda device: 1000
if "run" in sys.argv:
    run = vqclip.generate("a desert", size=(32, 32), cutouts=2, steps=1, device="cpu")
torch.ones(1 << 26)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    torch.ones(1 << 24)  # 64 MiB, and gone
faults, most = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, held()
if "run" in sys.argv:
    list(run)
print(faults, most - held())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or "LD_PRELOAD" in os.environ, reason="another C library")
def test_what_a_step_frees_is_kept_for_the_next_and_handed_back_after_the_last():
    def blocks(*arguments):
        told = subprocess.run([sys.executable, "-c", BLOCKS, *arguments], capture_output=True, text=True, check=True)
        return map(int, told.stdout.split())

    (plain, _), (kept, back), (short, _) = blocks(), blocks("run"), blocks("run", "short")
    assert kept * 8 < plain, (kept, plain)  # faults: pages that the system had to clear and map
    assert short * 2 > plain, (short, plain)  # where memory is short nothing is kept, as it lies in pieces
    assert back * os.sysconf("SC_PAGE_SIZE") > 200 << 20, back  # of 256 MiB that nobody uses any more
