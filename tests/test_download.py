"""Fetching: whatever the mirrors do, what arrives is the right file or nothing, and what arrived once is not lost."""

import hashlib
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import mirrors
import pytest
import requests
import tiny
import torch
from omegaconf import OmegaConf
from quick import until

import vqclip
from vqclip import checkpoints, download
from vqclip.catalogue import CheckpointError
from vqclip.cli import main
from vqclip.panel import Panel
from vqclip.player import Player
from vqclip.settings import Settings


@pytest.fixture(scope="module")
def data():
    """A Lightning checkpoint of a tiny VQGAN, as bytes."""
    buffer = io.BytesIO()
    tiny.write_ckpt(buffer, tiny.vqgan())
    return buffer.getvalue()


@pytest.fixture
def mirror(data):
    with mirrors.serve(data) as mirror:
        yield mirror


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """Nobody waits in tests; nothing in the environment decides for them."""
    monkeypatch.setattr(download, "PAUSE", 0)
    monkeypatch.setattr(download, "TIMEOUT", (5, 0.3))
    for name in ("VQCLIP_OFFLINE", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def row(mirror, *manners, name="mine", **changes):
    data = mirror.data
    ours = tiny.vqgan()
    return {
        "name": name, "kind": "vqgan", "title": "A tiny one", "bytes": len(data), "kept": len(data) // 2,
        "sha256": hashlib.sha256(data).hexdigest(), "mirrors": [mirror.url(manner) for manner in manners],
        "config": {"n_embed": 32, "embed_dim": 8, "gumbel": False, "ddconfig": ours.ddconfig}, **changes,
    }  # fmt: skip


def catalogue(folder, *rows):
    OmegaConf.save({"models": list(rows)}, folder / "catalogue.yaml")


def left(folder):
    """What a fetch leaves, less the catalogue and the lock files that are empty."""
    return sorted(path.name for path in folder.iterdir() if path.name != "catalogue.yaml" and path.stat().st_size)


def assert_fetched(path, folder):
    assert left(folder) == ["checkpoints.lock", "mine.safetensors"]
    loaded = vqclip.load_vqgan("mine", root=folder)
    original = tiny.vqgan().state_dict()
    assert path == folder / "mine.safetensors" and all(
        torch.equal(loaded.state_dict()[key], original[key]) for key in original
    )


# The mirrors of the world


HELPFUL = ["good", "no range", "cut short", "reset", "no length", "chunks", "slow", "redirects", "busy at first",
           "stalls"]  # fmt: skip
USELESS = {
    "missing": "says 404 Not Found",
    "web page": "offers 61 bytes where",
    "web page of the right length": "sends a web page or something else",
    "wrong bytes": "sends a file with a wrong SHA-256",
    "another file": r"offers [\d,]+ bytes where [\d,]+ are right",
    "cut short without range": "stops after|breaks off",
    "reset at once": "breaks off",
    "length too large": r"offers [\d,]+ bytes where [\d,]+ are right",
    "length too small": r"offers [\d,]+ bytes where [\d,]+ are right",
    "endless": "sends more and more",
    "silent": r"breaks off \(.*timed out",
    "redirects in circles": "breaks off .*redirects",
    "busy": "says 503",
    "web page in place of a piece": "offers 61 bytes where",
}


@pytest.mark.parametrize("begun", [False, True], ids=["anew", "resumed"])
@pytest.mark.parametrize("manner", HELPFUL)
def test_a_mirror_that_gives_in_the_end_is_enough(mirror, tmp_path, manner, begun, monkeypatch):
    monkeypatch.setattr(mirror, "burst", len(mirror.data) // 3)
    catalogue(tmp_path, row(mirror, manner))
    if begun:
        (tmp_path / "mine.ckpt.part").write_bytes(mirror.data[: len(mirror.data) // 3])
    assert_fetched(vqclip.fetch("mine", tmp_path), tmp_path)
    assert begun == (mirror.requests[0][1] > 0)
    assert json.loads((tmp_path / "checkpoints.lock").read_text())["mine"]["from"] == mirror.url(manner)


@pytest.mark.parametrize("begun", [False, True], ids=["anew", "resumed"])
@pytest.mark.parametrize("manner", USELESS)
def test_a_useless_mirror_is_left_for_the_next(mirror, tmp_path, manner, begun, capsys):
    catalogue(tmp_path, row(mirror, manner, "good"))
    if begun:
        (tmp_path / "mine.ckpt.part").write_bytes(mirror.data[: len(mirror.data) // 3])
    assert_fetched(vqclip.fetch("mine", tmp_path), tmp_path)
    if not (begun and manner == "wrong bytes"):
        assert re.search(f"127.0.0.1 ({USELESS[manner]})", capsys.readouterr().err)
    assert mirror.requests[-1][0] == "good"


@pytest.mark.parametrize("manner", USELESS)
def test_when_all_fail_each_reason_is_told_and_nothing_false_remains(mirror, tmp_path, manner):
    catalogue(tmp_path, row(mirror, "missing", manner))
    with pytest.raises(CheckpointError) as caught:
        vqclip.load_vqgan("mine", root=tmp_path)
    words = str(caught.value)
    assert words.startswith("mine could not be fetched: 127.0.0.1 says 404") and "\n" not in words
    assert re.search(USELESS[manner], words) and "0x" not in words
    for name in left(tmp_path):  # a good beginning may stay
        assert name == "mine.ckpt.part" and mirror.data.startswith((tmp_path / name).read_bytes())


def test_a_piece_begun_wrongly_is_mended_by_a_good_mirror(mirror, tmp_path):
    """The beginning is of another file: the mirror is not to blame, and is asked once more, for all of it."""
    (tmp_path / "mine.ckpt.part").write_bytes(b"PK\x03\x04" + bytes(5000))
    catalogue(tmp_path, row(mirror, "good"))
    assert_fetched(vqclip.fetch("mine", tmp_path), tmp_path)
    assert [(start, asked) for _, start, asked in mirror.requests] == [(5004, "Range"), (0, "")]


@pytest.mark.parametrize("extra", [0, 1, 5000])
def test_a_part_as_long_as_the_file_or_longer(mirror, tmp_path, extra):
    (tmp_path / "mine.ckpt.part").write_bytes(mirror.data + bytes(extra))
    catalogue(tmp_path, row(mirror, "good"))
    assert_fetched(vqclip.fetch("mine", tmp_path), tmp_path)
    assert len(mirror.requests) == (extra > 0)


def test_a_mirror_that_answers_with_another_piece_is_left(mirror, tmp_path, capsys):
    (tmp_path / "mine.ckpt.part").write_bytes(mirror.data[:5000])
    catalogue(tmp_path, row(mirror, "another piece", "good"))
    assert_fetched(vqclip.fetch("mine", tmp_path), tmp_path)
    assert "sends another piece than the one asked for" in capsys.readouterr().err


def test_a_web_page_does_not_cost_what_was_there(mirror, tmp_path):
    (tmp_path / "mine.ckpt.part").write_bytes(mirror.data[:5000])
    catalogue(tmp_path, row(mirror, "web page of the right length", "busy"))
    with pytest.raises(CheckpointError):
        vqclip.fetch("mine", tmp_path)
    assert (tmp_path / "mine.ckpt.part").read_bytes() == mirror.data[:5000]


def test_no_such_host(tmp_path, mirror):
    away = row(mirror, "good", mirrors=["http://127.0.0.1:1/x.ckpt", "https://no.such.host.invalid/x.ckpt", "nonsense"])
    catalogue(tmp_path, away)
    with pytest.raises(CheckpointError, match="mine could not be fetched: 127.0.0.1 breaks off"):
        vqclip.fetch("mine", tmp_path)


# Hashes that nobody published


def test_without_a_public_hash_the_first_one_is_remembered_and_binds(mirror, tmp_path):
    catalogue(tmp_path, row(mirror, "good", sha256=None))
    assert_fetched(vqclip.fetch("mine", tmp_path), tmp_path)
    noted = json.loads((tmp_path / "checkpoints.lock").read_text())["mine"]
    assert noted["sha256"] == hashlib.sha256(mirror.data).hexdigest() and noted["bytes"] == len(mirror.data)
    (tmp_path / "mine.safetensors").unlink()
    catalogue(tmp_path, row(mirror, "wrong bytes", sha256=None))
    with pytest.raises(CheckpointError, match="wrong SHA-256.* take mine out of .*checkpoints.lock"):
        vqclip.fetch("mine", tmp_path)
    (tmp_path / "checkpoints.lock").unlink()  # who deletes it, trusts anew
    assert vqclip.fetch("mine", tmp_path).exists()


def test_without_a_public_hash_a_file_must_fit_its_architecture(mirror, tmp_path, data, capsys):
    other = io.BytesIO()
    state = tiny.vqgan(seed=1).state_dict()
    del state["decoder.conv_out.bias"]
    torch.save({"state_dict": state, "padding": torch.zeros(len(data))}, other)
    with mirrors.serve(other.getvalue()[: len(data)].ljust(len(data))) as impostor:
        first = impostor.url("good")
        catalogue(tmp_path, row(mirror, "good", sha256=None) | {"mirrors": [first, mirror.url("good")]})
        assert_fetched(vqclip.fetch("mine", tmp_path), tmp_path)
    assert "sends another file" in capsys.readouterr().err


def test_without_a_public_hash_pieces_of_two_mirrors_are_never_put_together(mirror, tmp_path):
    catalogue(tmp_path, row(mirror, "cut short without range", "good", sha256=None))
    assert_fetched(vqclip.fetch("mine", tmp_path), tmp_path)  # and the piece that is of no use is gone
    assert mirror.requests[-1] == ("good", 0, "")


@pytest.mark.parametrize("manner, fine", [("good", True), ("chunks", True), ("web page", False), ("endless", False)])
def test_a_size_known_only_about(mirror, tmp_path, manner, fine):
    size = round(len(mirror.data) * 1.04)
    catalogue(tmp_path, row(mirror, manner, sha256=None, bytes=size, about=True))
    if fine:
        assert_fetched(vqclip.fetch("mine", tmp_path), tmp_path)
    else:
        with pytest.raises(CheckpointError):
            vqclip.fetch("mine", tmp_path)


def test_a_damaged_lock_file_is_said_to_be(mirror, tmp_path):
    catalogue(tmp_path, row(mirror, "good", sha256=None))
    (tmp_path / "checkpoints.lock").write_text("{")
    with pytest.raises(CheckpointError, match="checkpoints.lock is damaged"):
        vqclip.fetch("mine", tmp_path)


# Kills, two at once, room, offline, proxies


KILLED = """
import sys
from vqclip import download
download.PAUSE = 0
url, target, size, digest = sys.argv[1:]
from pathlib import Path
print(download.download([url], Path(target), size=int(size), sha256=digest)[2])
"""


def test_a_download_killed_ten_times_is_finished_with_the_right_hash(tmp_path):
    data = b"PK\x03\x04" + torch.randint(256, (3_000_000,), dtype=torch.uint8).numpy().tobytes()
    digest, part = hashlib.sha256(data).hexdigest(), tmp_path / "big.ckpt.part"
    with mirrors.serve(data) as mirror:
        command = [sys.executable, "-c", KILLED, mirror.url("stalls"), tmp_path / "big.ckpt", str(len(data)), digest]
        for _ in range(10):
            before = part.stat().st_size if part.exists() else 0
            program = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            deadline = time.monotonic() + 60
            while not part.exists() or part.stat().st_size < before + mirror.burst // 2:
                assert program.poll() is None and time.monotonic() < deadline
                threading.Event().wait(0.005)
            program.send_signal(signal.SIGKILL)
            program.wait()
        mirror.burst = len(data)
        subprocess.run(command, check=True, capture_output=True)
    assert hashlib.sha256(part.read_bytes()).hexdigest() == digest
    starts = [start for _, start, _ in mirror.requests]
    assert len(starts) == 11 and starts == sorted(set(starts)), "every one went on where the last had been killed"


def test_ctrl_c_says_that_nothing_is_lost(mirror, tmp_path, monkeypatch, capsys):
    catalogue(tmp_path, row(mirror, "good"))
    seen = iter(range(20))

    def interrupted(update):
        def update_bar(bar, n=1):
            if next(seen, None) is None:
                raise KeyboardInterrupt
            return update(bar, n)

        return update_bar

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(download.tqdm, "update", interrupted(download.tqdm.update))
        vqclip.fetch("mine", tmp_path)
    assert "mine: stopped; what came is kept" in capsys.readouterr().err
    part = (tmp_path / "mine.ckpt.part").stat().st_size
    assert 0 < part < len(mirror.data)
    assert_fetched(vqclip.fetch("mine", tmp_path), tmp_path)
    assert mirror.requests[-1] == ("good", part, "Range")


def test_a_player_that_is_stopped_breaks_a_download_off_and_goes_on_there(mirror, tmp_path, files):
    home = shutil.copytree(files, tmp_path / "checkpoints")
    catalogue(home, row(mirror, "stalls"))
    mirror.burst = len(mirror.data) // 40  # so that it is not through before it is stopped
    settings = Settings(vqgan="mine", clip="vit", size=(16, 16), steps=2, cutouts=2)
    player, part = Player(settings, tmp_path), home / "mine.ckpt.part"
    player.play()
    until(lambda: player.fetched and player.fetched[0])
    assert player.fetched[1] == len(mirror.data) and "Fetching the painter" in Panel(player).status.value
    player.stop()
    assert (player.state, player.error, player.session) == ("stopped", None, None)
    assert 0 < part.stat().st_size < len(mirror.data)
    mirror.burst = len(mirror.data)
    player.play()
    until(lambda: not player.alive)
    assert (player.state, player.frame.step) == ("done", 2) and mirror.requests[-1][2] == "Range"


def test_two_at_once_fetch_once(mirror, tmp_path):
    catalogue(tmp_path, row(mirror, "good"))
    results = []
    threads = [threading.Thread(target=lambda: results.append(vqclip.fetch("mine", tmp_path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [tmp_path / "mine.safetensors"] * 3 and len(mirror.requests) == 1


def test_what_is_kept_is_the_conversion_alone_unless_asked(mirror, tmp_path):
    catalogue(tmp_path, row(mirror, "good"))
    vqclip.fetch("mine", tmp_path, keep=True)
    assert left(tmp_path) == ["checkpoints.lock", "mine.ckpt", "mine.safetensors"]
    assert (tmp_path / "mine.ckpt").read_bytes() == mirror.data


def test_a_file_put_there_by_hand_is_used_converted_when_asked_and_never_deleted(mirror, tmp_path):
    catalogue(tmp_path, row(mirror, "good"))
    (tmp_path / "mine.ckpt").write_bytes(mirror.data)
    assert vqclip.load_vqgan("mine", root=tmp_path).sha256 == hashlib.sha256(mirror.data).hexdigest()
    assert left(tmp_path) == ["mine.ckpt"]
    vqclip.fetch("mine", tmp_path)
    assert left(tmp_path) == ["mine.ckpt", "mine.safetensors"] and mirror.requests == []


def test_no_room_is_said_before_anything_is_fetched(mirror, tmp_path, monkeypatch):
    catalogue(tmp_path, row(mirror, "good", bytes=4_263_525_412, kept=289_000_000))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=3 * 10**9))
    with pytest.raises(CheckpointError, match="mine needs 4.6 GB in .* 1.6 GB more than there is"):
        vqclip.fetch("mine", tmp_path)
    assert mirror.requests == []


def test_a_disk_that_fills_up_costs_nothing_that_was_fetched(mirror, tmp_path, full_disk):
    catalogue(tmp_path, row(mirror, "good"))
    with full_disk(100_000), pytest.raises(CheckpointError, match="mine cannot be written .* make room"):
        vqclip.fetch("mine", tmp_path)
    assert (tmp_path / "mine.ckpt.part").stat().st_size == 100_000
    assert_fetched(vqclip.fetch("mine", tmp_path), tmp_path)
    assert mirror.requests[-1] == ("good", 100_000, "Range")


@pytest.mark.parametrize("name", ["VQCLIP_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_what_is_here_works_and_what_is_not_says_so(mirror, tmp_path, monkeypatch, name):
    catalogue(tmp_path, row(mirror, "good"), row(mirror, "good", name="other"))
    vqclip.fetch("mine", tmp_path)
    monkeypatch.setenv(name, "1")
    assert vqclip.load_vqgan("mine", root=tmp_path).name == "mine"
    with pytest.raises(CheckpointError, match=f"other is not in .*, and {name} forbids fetching it: unset that"):
        vqclip.load_vqgan("other", root=tmp_path)
    monkeypatch.setenv(name, "0")
    assert vqclip.load_vqgan("other", root=tmp_path).name == "other"


def test_a_proxy_of_the_environment_is_asked(mirror, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{mirror.server_port}")
    monkeypatch.setenv("no_proxy", "")
    catalogue(tmp_path, row(mirror, "good", mirrors=["http://models.invalid/good/model.ckpt"]))
    assert_fetched(vqclip.fetch("mine", tmp_path), tmp_path)
    assert mirror.headers_seen[0]["Host"] == "models.invalid"


def test_what_the_mirrors_are_told(mirror, tmp_path):
    catalogue(tmp_path, row(mirror, "good"))
    vqclip.fetch("mine", tmp_path)
    told = mirror.headers_seen[0]
    assert told["User-Agent"].startswith("vqclip/") and told["Accept-Encoding"] == "identity"
    assert told["Referer"] == f"http://127.0.0.1:{mirror.server_port}/"  # koofr wants one


def test_embedded_and_paths_never_touch_the_network(files, tmp_path, monkeypatch):
    monkeypatch.setattr(requests, "get", None)
    vqclip.load_vqgan("embedded", root=tmp_path)
    vqclip.load_clip("embedded", root=tmp_path)
    vqclip.load_vqgan(files / "vqgan.safetensors", root=tmp_path)
    vqclip.load_clip("vit", root=files)
    assert left(tmp_path) == []


def test_a_name_that_nobody_knows_is_not_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(requests, "get", None)
    with pytest.raises(CheckpointError, match="the catalogue has no 'nobody'"):
        vqclip.fetch("nobody", tmp_path)


# As it is used


def test_a_painter_and_a_judge_are_fetched_by_painting_with_them(mirror, tmp_path, capsys):
    home = tmp_path / "checkpoints"
    home.mkdir()
    tiny.write_clip_pt(tmp_path / "clip.pt", tiny.clip())
    with mirrors.serve((tmp_path / "clip.pt").read_bytes()) as other:
        judge = row(other, "missing", "good", name="Tiny/8", kind="clip", config={"size": 32})
        catalogue(home, row(mirror, "cut short"), judge)
        words = ["vqgan=mine", "clip=Tiny/8", "size=32x32", "steps=2", "cutouts=2", "--workspace", str(tmp_path)]
        assert main(["generate", "desert", *words]) == 0
    assert left(home) == ["Tiny-8.safetensors", "checkpoints.lock", "mine.safetensors"]
    folder = capsys.readouterr().out.splitlines()[-1]
    assert vqclip.Session(folder).about["checkpoints"]["clip Tiny/8"] == checkpoints.sha256(home / "Tiny-8.safetensors")
    assert main(["continue", folder, "steps=3", "--workspace", str(tmp_path)]) == 0  # with the mirrors gone
    assert len(vqclip.Session(folder).codes) == 4


def test_the_command_fetches_and_converts(mirror, tmp_path, capsys):
    home = tmp_path / "checkpoints"
    home.mkdir()
    catalogue(home, row(mirror, "good"))
    assert main(["checkpoints", "mine", "--keep", "--workspace", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{home / 'mine.safetensors'}\n" and (home / "mine.ckpt").exists()
    tiny.write_ckpt(tmp_path / "own.ckpt", tiny.vqgan())
    tiny.write_yaml(tmp_path / "own.yaml", tiny.vqgan())
    assert main(["checkpoints", str(tmp_path / "own.ckpt"), "--workspace", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'own.safetensors'}\n"
    assert main(["checkpoints", "nobody", "--workspace", str(tmp_path)]) == 2
    assert "vqclip: the catalogue has no 'nobody'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "head, kind",
    [(b"PK\x03\x04....", "zip"), (b"\x80\x02\x8a\nl\xfc", "legacy"), (b"\x10\0\0\0\0\0\0\0{", "safetensors"),
     (b"", None), (b"PK", None), (b"<!DOCTYPE html>", None), (b'{"error": "no"}', None), (b"\x80abc", None)],
)  # fmt: skip
def test_the_first_bytes_tell_what_a_file_is(head, kind):
    assert download.layout(head) == kind
