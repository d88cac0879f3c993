"""CLIP as a judge: unit rows in float32, OpenAI's tokens, a vocabulary that may be small and says so."""

import sys
import warnings

import pytest
import tiny
import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

import vqclip
from vqclip.catalogue import CheckpointError
from vqclip.perceptor import CLIP, build_clip, tokenizer
from vqclip.tower import steepen


def pictures(n, size, seed=0):
    return torch.rand((n, 3, size, size), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["vit", "rn"])
def clip(request):
    return request.getfixturevalue(request.param)


def ids(*words):
    return {token for word in words for token in tokenizer().encode(word)} | {49406, 49407}  # start and end


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The tiny CLIP with the tokens of a few words only, from its file."""
    state = {key: value.contiguous() for key, value in tiny.clip().state_dict().items()}
    known = torch.tensor(sorted(ids("a", "desert", "snow", "olive tree", ",")))
    state["token_embedding.weight"] = state["token_embedding.weight"][known]
    path = tmp_path_factory.mktemp("small") / "small.safetensors"
    save_file({**state, "vocab": known.int()}, path)
    assert path.stat().st_size < 4_000_000  # which is what it is for: with all of them, 28 MB
    return vqclip.load_clip(path.stem, root=path.parent)


def test_rows_are_units_in_float32(clip):
    assert clip.size == {"vit": 32, "rn": 64}[clip.name]
    D = {"vit": 48, "rn": 40}[clip.name]
    texts = ["a desert", "", "snow " * 20, "🏜️ пустыня 砂漠"]
    for rows in (clip.encode_text(texts), clip.encode_image(pictures(4, clip.size))):
        assert rows.shape == (4, D) and rows.dtype == torch.float32
        assert torch.allclose(rows.norm(dim=1), torch.ones(4), atol=1e-6)
        assert (rows[0] - rows[1]).norm() > 1e-3
    assert not clip.encode_text(texts).requires_grad


def test_pictures_have_a_gradient_and_the_model_has_none(clip):
    cuts = pictures(3, clip.size).requires_grad_()
    (gradient,) = torch.autograd.grad(clip.encode_image(cuts)[:, 0].sum(), cuts)
    assert torch.isfinite(gradient).all() and (gradient.flatten(1).norm(dim=1) > 0).all()
    assert not clip.training and not any(p.requires_grad for p in clip.parameters())


def test_each_row_stands_for_itself(clip):
    texts, cuts = ["a desert", "snow on the mountains", "fog"], pictures(3, clip.size)
    for i in range(3):
        assert torch.allclose(clip.encode_text(texts[i : i + 1])[0], clip.encode_text(texts)[i], atol=1e-6)
        assert torch.allclose(clip.encode_image(cuts[i : i + 1])[0], clip.encode_image(cuts)[i], atol=1e-5)


def test_the_clip_package_itself_is_not_imported(clip):
    """It wants pkg_resources, which new versions of setuptools no longer have."""
    assert "clip" not in sys.modules


# Precision


@pytest.mark.parametrize("name", ["vit", "rn"])
def test_weights_cast_once_give_what_autocast_gives(files, name):
    """Bit for bit: embeddings of pictures and words, and the gradient; while the tower of words stays float32."""
    once = vqclip.load_clip(name, precision=torch.bfloat16, root=files)
    always = CLIP(vqclip.load_clip(name, root=files).network, name, precision=torch.bfloat16)
    if name == "vit":
        for block in always.network.visual.transformer.resblocks:
            steepen(block.mlp)
    assert {p.dtype for p in once.network.visual.parameters()} == {torch.float32, torch.bfloat16}
    assert {p.dtype for p in once.network.transformer.parameters()} == {torch.float32}
    cuts = pictures(6, once.size).requires_grad_()
    rows = [clip.encode_image(cuts) for clip in (once, always)]
    gradients = [torch.autograd.grad(row[:, :4].sum(), cuts)[0] for row in rows]
    assert torch.equal(*rows) and torch.equal(*gradients)
    assert torch.equal(once.encode_text(["snow"]), always.encode_text(["snow"]))


@pytest.mark.parametrize("name", ["vit", "rn"])
def test_bfloat16_is_close_and_comes_out_in_float32(files, name):
    full, half = (vqclip.load_clip(name, precision=dtype, root=files) for dtype in (torch.float32, torch.bfloat16))
    cuts = pictures(6, full.size).requires_grad_()
    gradients = []
    for clip in (full, half):
        rows = clip.encode_image(cuts)
        assert rows.dtype == torch.float32 and torch.allclose(rows.norm(dim=1), torch.ones(6), atol=1e-5)
        gradients.append(torch.autograd.grad(rows[:, :4].sum(), cuts)[0])
    a, b = full.encode_image(cuts), half.encode_image(cuts)
    assert 0 < (a - b).norm(dim=1).max() < 0.05  # radians, near enough; not equal, or it would compute in float32
    assert gradients[1].dtype == torch.float32
    assert torch.cosine_similarity(gradients[0].flatten(), gradients[1].flatten(), dim=0) > 0.9
    texts = ["a desert", "snow"]
    assert (full.encode_text(texts) - half.encode_text(texts)).norm(dim=1).max() < 0.05
    assert not torch.is_autocast_enabled("cpu")


# Tokens


@pytest.mark.parametrize(
    "text",
    ["a desert", "", "Star Wars: A New Hope!", "  two\n lines\t", "it's 12:30 &amp; 5 o'clock", "пустыня 🏜️ 砂漠"],
)
def test_tokens_are_openais(vit, text):
    tokens = vit.tokens(text)
    assert list(tokens.ids) == tiny.tokenize([text])[0, : len(tokens.ids)].tolist()
    assert tokens.ids[0] == 49406 and tokens.ids[-1] == 49407 and tokens.ids.count(49407) == 1
    assert tokens.context == 77 and tokens.cut == "" and tokens.unknown == ()


@pytest.mark.parametrize("words, cut", [(74, 0), (75, 0), (76, 1), (78, 3), (5000, 4925)])
def test_what_does_not_fit_is_told_to_the_word(vit, words, cut):
    tokens = vit.tokens(" ".join(["snow"] * words))
    assert tokens.cut == " ".join(["snow"] * cut)
    assert len(tokens.ids) == min(words + 2, 77) and tokens.ids[-1] == 49407


def test_a_text_that_is_too_long_is_read_to_where_it_fits_with_a_warning(vit):
    fits = " ".join(["olive tree"] * 37 + ["snow"])  # 75 tokens
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = vit.encode_text([fits])
    with pytest.warns(UserWarning, match="vit reads 77 tokens; this was cut off: 'under the moon'") as caught:
        cut = vit.encode_text([f"{fits} under the moon"])
    assert torch.equal(cut, whole)
    assert caught[0].filename == __file__  # it points at who asked


# A small vocabulary


def test_known_words_mean_what_they_meant(small, vit):
    texts = ["a desert", "snow, snow", "an olive tree"[3:], ""]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = small.encode_text(texts)
    assert torch.equal(rows, vit.encode_text(texts))
    cuts = pictures(2, 32)
    assert torch.equal(small.encode_image(cuts), vit.encode_image(cuts))


def test_the_table_of_words_is_full_again_and_empty_where_nothing_was_learnt(small):
    table = small.network.token_embedding.weight
    assert table.shape == (49408, 128)
    known = sorted(ids("a", "desert", "snow", "olive tree", ","))
    assert (table[known].norm(dim=1) > 0).all()
    assert (table.norm(dim=1) > 0).sum() == len(known)


@pytest.mark.parametrize(
    "text, unknown",
    [
        ("a castle", ("castle",)),
        ("Castle, snow, castle, and a CASTLE", ("Castle,", "castle,", "and", "CASTLE")),
        ("пустыня snow", ("пустыня",)),
        ("DESERT SNOW", ()),
        ("olivetree", ("olivetree",)),
    ],
)
def test_unknown_words_are_named(small, text, unknown):
    assert small.tokens(text).unknown == unknown
    if unknown:
        with pytest.warns(UserWarning) as caught:
            small.encode_text([text])
        assert str(caught[0].message) == f"small never learnt {', '.join(unknown)}: such words paint nothing"


def test_a_long_text_of_unknown_words_is_warned_of_briefly(small):
    text = " ".join(f"{a}{b}" for a in ("moon", "sun", "fog") for b in ("rise", "set", "light", "dark", "glow"))
    with pytest.warns(UserWarning, match=r"never learnt moonrise, moonset, .*, \w+ \.\.\.: such words") as caught:
        small.encode_text([text])
    assert len(str(caught[0].message)) < 200


def test_a_whole_vocabulary_knows_every_word(vit):
    assert vit.tokens("castle брмбл").unknown == () and vit.vocabulary is None


def test_a_run_with_a_small_vocabulary_says_what_it_does_not_know(vqgan, small):
    with pytest.warns(UserWarning, match="small never learnt castle"):
        run = vqclip.generate("a castle | snow", vqgan, small, size=16, steps=1, cutouts=2, device="cpu")
    assert len(list(run)) == 2


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_weights_given_are_not_changed(precision):
    weights = dict(tiny.clip().named_parameters())
    before = {key: value.detach().clone() for key, value in weights.items()}
    build_clip(weights, "again", precision)
    assert weights.keys() == before.keys() and all(torch.equal(weights[key], before[key]) for key in before)


class Formats(TorchDispatchMode):
    """Which formats tensors of a shape have that operations give."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.seen = shape, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.shape == self.shape:
            self.seen.add(made.dtype)
        return made


def test_crops_in_bfloat16_are_not_brought_to_float32_on_their_way(files):
    clip = vqclip.load_clip("vit", precision=torch.bfloat16, root=files)
    cuts = pictures(3, clip.size).bfloat16().requires_grad_()
    with Formats(cuts.shape) as formats:
        clip.encode_image(cuts)[:, 0].sum().backward()
    assert formats.seen == {torch.bfloat16} and cuts.grad.norm() > 0


# What is not here


def test_without_open_clip_the_way_to_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)  # as if it were not installed
    with pytest.raises(CheckpointError, match="needs open_clip, which is not here .*: pip install open_clip_torch"):
        vqclip.load_clip("open_clip:ViT-B-32/laion2b_s34b_b79k")


def test_a_torchvision_of_another_torch_is_said(monkeypatch, tmp_path):
    (tmp_path / "open_clip.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.delitem(sys.modules, "open_clip", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CheckpointError, match="torchvision::nms.*install the torchvision that belongs to torch"):
        vqclip.load_clip("open_clip:ViT-B-32/laion2b_s34b_b79k")
