"""The catalogue: every row is whole, every name finds its model, and a row of one's own is all it takes to add one."""

import re
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import tiny
import torch

import vqclip
from vqclip import catalogue
from vqclip.catalogue import CheckpointError, checkpoint_table, find, models, size
from vqclip.cli import main

OPENAI = "ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px", "RN50", "RN101", "RN50x4", "RN50x16", "RN50x64"
PAINTERS = ("imagenet_f16_16384", "imagenet_f16_1024", "gumbel_f8_8192", "wikiart_f16_16384", "wikiart_f16_1024",
            "coco_first_stage", "sflckr", "faceshq", "sber_gumbel_f8", "dalle_mini_f16_16384")  # fmt: skip


def test_what_artists_use_is_there():
    assert [model.name for model in models() if model.kind == "clip"] == list(OPENAI)
    assert [model.name for model in models() if model.kind == "vqgan"] == list(PAINTERS)


@pytest.mark.parametrize("model", models(), ids=lambda model: model.name)
def test_every_row_is_whole(model):
    assert model.title and model.good_at and model.licence and model.mirrors
    assert model.sha256 is None or re.fullmatch("[0-9a-f]{64}", model.sha256)
    assert model.bytes >= 0.99 * model.kept > 200e6
    assert len(set(model.mirrors)) == len(model.mirrors)
    for url in model.mirrors:
        parts = urlsplit(url)
        assert parts.scheme == "https" or model.sha256, "without a hash, nothing but https tells who is speaking"
        assert parts.hostname and not url.endswith((".yaml", ".yml", ".zip"))
    if model.kind == "clip":
        assert model.sha256 in model.mirrors[0] and model.sha256 in model.mirrors[1]  # as OpenAI's addresses are made


def test_the_readme_knows_every_row():
    readme = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
    assert [model.name for model in models() if f"`{model.name}`" not in readme] == []


def test_no_two_rows_share_a_name_or_a_file():
    keys = [catalogue._key(name) for model in models() for name in {model.name, *model.aliases}]
    assert len(set(keys)) == len(keys)
    assert len({model.stem for model in models()}) == len(models())


@pytest.mark.parametrize("model", [model for model in models() if model.kind == "vqgan"], ids=lambda model: model.name)
def test_the_architecture_is_of_the_size_that_is_kept(model):
    with torch.device("meta"):
        painter = vqclip.VQGAN(**model.config)
    assert 4 * sum(tensor.numel() for tensor in painter.state_dict().values()) == model.kept
    codes = int(re.search(r"(\d+) codes", model.title)[1])
    assert (len(painter.codebook), f"{painter.f}x{painter.f} pixels" in model.title) == (codes, True)
    assert painter.gumbel == ("Gumbel" in model.title)


@pytest.mark.parametrize(
    "typed, name",
    [
        ("ViT-B/32", "ViT-B/32"), ("vit_b_32", "ViT-B/32"), ("ViT-B-32", "ViT-B/32"), ("clip_vit_b_32", "ViT-B/32"),
        ("ViT-L/14@336px", "ViT-L/14@336px"), ("ViT-L-14-336px", "ViT-L/14@336px"), ("vit-l/14-336", "ViT-L/14@336px"),
        ("rn50x4", "RN50x4"), ("vqgan_imagenet_f16_16384", "imagenet_f16_16384"),
        ("imagenet_16384", "imagenet_f16_16384"), ("vqgan_openimages_f16_8192", "gumbel_f8_8192"),
        ("openimages", "gumbel_f8_8192"), ("sflickr", "sflckr"), ("COCO", "coco_first_stage"),
        ("vqgan_gumbel_f8", "gumbel_f8_8192"),
    ],
)  # fmt: skip
def test_names_of_old_and_other_spellings_find_their_model(typed, name):
    assert find(typed).name == name


@pytest.mark.parametrize("typed", ["", "embedded", "vqgan", "clip", "imagenet_f16", "ViT-B", "../etc/passwd", "/"])
def test_other_names_find_none(typed):
    assert find(typed) is None


def test_a_file_is_found_under_any_of_its_names_the_converted_one_first(tmp_path):
    model = find("imagenet_f16_16384")
    assert model.here(tmp_path) is None and model.here(tmp_path / "nowhere") is None
    for name in ("vqgan_imagenet_f16_1024.ckpt", "imagenet_f16_16384.yaml", "imagenet_f16_16384.ckpt.part"):
        (tmp_path / name).touch()
    assert model.here(tmp_path) is None
    for name in ("vqgan_imagenet_f16_16384.ckpt", "imagenet_16384.safetensors"):
        (tmp_path / name).touch()
        assert model.here(tmp_path) == tmp_path / name


ROW = """
models:
- {name: mine, kind: vqgan, title: My own, bytes: 1234567, kept: 1000000, mirrors: ["https://a.example/mine.ckpt"],
   config: {n_embed: 32, embed_dim: 8, ddconfig: {}}}
"""


def test_a_row_of_ones_own_goes_first(tmp_path):
    (tmp_path / "catalogue.yaml").write_text(ROW + ROW.split("models:")[1].replace("mine,", "RN50,"))
    assert find("mine", tmp_path).bytes == 1234567 and find("mine") is None
    assert find("RN50", tmp_path).title == "My own" and find("RN50").title != "My own"
    assert len(models(tmp_path)) == len(models()) + 1
    assert "My own" in checkpoint_table(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "a: b", "models: 3", "models: [{name: a}]", "models: [", "!!python/object/apply:os.getcwd []",
     ROW.replace("vqgan", "gan"), ROW.replace("title", "titel")],
)  # fmt: skip
def test_a_catalogue_that_is_none_is_said_to_be(tmp_path, text):
    (tmp_path / "catalogue.yaml").write_text(text)
    with pytest.raises(CheckpointError, match="catalogue.yaml is no catalogue"):
        find("mine", tmp_path)


def test_the_table_says_what_is_here_and_what_has_room(tmp_path, capsys, monkeypatch):
    home = tmp_path / "checkpoints"
    home.mkdir()
    tiny.write_clip_safetensors(home / "RN50.safetensors", tiny.clip("rn"))
    (home / "imagenet_f16_1024.ckpt").touch()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=3 * 10**9))
    assert main(["checkpoints", "--workspace", str(tmp_path)]) == 0
    printed = capsys.readouterr().out.splitlines()
    lines = {line.split()[0]: line for line in printed if line}
    assert set(OPENAI + PAINTERS) <= lines.keys()
    assert "256 MB" in lines["RN50"] and lines["RN50"].endswith("  here")
    assert "here, .ckpt" in lines["imagenet_f16_1024"]
    assert "980 MB   304 MB   can be fetched" in lines["imagenet_f16_16384"]
    assert "no room, 1.6 GB short" in lines["sflckr"] and "~346 MB" in lines["sber_gumbel_f8"]
    title = printed[printed.index(lines["wikiart_f16_16384"]) + 1]
    note = re.search(r"\[\d\]$", title)[0]
    assert "none stated for these community weights" in lines[note]


def test_sizes_for_people():
    assert [size(n) for n in (980_092_370, 4_263_525_412, 745)] == ["980 MB", "4.3 GB", "0 MB"]
