"""The embedded pair's recipe: scenes are what their facts say, captions mention only what is true, losses fall."""

import csv
import itertools
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel

import vqclip
from training import trial
from training.asked import read_prompts
from training.batches import GOALS, LOOKS, Batch, Captioned, Stock, Vocabulary
from training.beside import Told, mixture, tell
from training.captions import (
    COLOUR_WORDS,
    FACTS,
    LANGUAGES,
    NOUNS,
    SAME,
    WORDS,
    all_parts,
    all_words,
    behind,
    caption,
    inflections,
    marked,
    mentioned,
    parts,
    phrase,
    reworded,
    said_twice,
    sayable,
    worded,
)
from training.codes import project
from training.data import floats, rendered
from training.export import guide
from training.gradient import uphill
from training.kin import FAMILIES, PLAIN, SIZE, THINGS, family, kin, relatives
from training.mosaic import even, uneven
from training.repaint import ODDS, bend, spoil, without_things
from training.scenes import (
    COLOURS,
    GROUNDS,
    HELD_OUT,
    SANDED,
    SHAPES,
    SIDE,
    STANDING,
    Scene,
    render,
    render_and_things,
    scattered,
    scene,
    with_other_things,
)
from training.texts import Walks, change, lead, raw, said_and_read, teach
from training.train import kept_clip, read_recipe, say_as, stay_near, train
from training.train_clip import Sums, agree, ahead, as_runs, cut, never_together, uncut
from training.train_vqgan import PaintersTraining
from training.walkers import Walkers, turns
from vqclip.checkpoints import EMBEDDED, write_weights
from vqclip.perceptor import openai_clip, tokenizer


def picture(**what) -> np.ndarray:
    """A scene in [0, 1]."""
    return render(Scene(**{"seed": 3, "ground": "meadow", **what})) / 255


def test_scenes_are_the_same_for_ever_and_differ():
    assert scene(5) == scene(5)
    assert (render(scene(5)) == render(scene(5))).all()
    assert len({render(scene(k)).tobytes() for k in range(20)}) == 20


def test_all_grounds_are_painted_whole():
    for k, ground in enumerate(GROUNDS):
        painted = render(Scene(k, ground))
        assert painted.shape == (SIDE, SIDE, 3) and painted.dtype == np.uint8
        assert painted.std() > 10


@pytest.mark.parametrize("seed", range(5))
def test_light_follows_the_time(seed):
    day, sunset, night = (picture(seed=seed, time=time) for time in ("day", "sunset", "night"))
    assert night.mean() < sunset.mean() < day.mean()
    assert night.mean() < 0.25
    sky = slice(20, 50)
    assert sunset[sky, :, 0].mean() > sunset[sky, :, 2].mean()  # red in the evening, blue at noon
    assert day[sky, :, 2].mean() > day[sky, :, 0].mean()


@pytest.mark.parametrize("seed", range(5))
def test_grounds_have_their_colours(seed):
    bottom = {ground: picture(seed=seed, ground=ground)[-12:].mean((0, 1)) for ground in GROUNDS}
    assert bottom["snow"].min() > 0.75
    assert bottom["desert"][0] > bottom["desert"][1] > bottom["desert"][2] + 0.15
    floor = bottom["forest"]
    assert bottom["meadow"].argmax() == 1 and (floor.argmax() == 1 or floor[0] > floor[2] + 0.15)  # green, or sand
    assert picture(seed=seed, ground="forest")[SIDE // 2 :][:8].mean((0, 1)).argmax() == 1  # of its trees
    assert bottom["sea"].argmax() == 2
    assert bottom["beach"][0] > bottom["beach"][2]


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("thing", ["house", "sailboat", "balloon", "flowers"])
def test_things_have_their_colour(thing, colour):
    ground = "sea" if thing == "sailboat" else "meadow"
    bare, with_it = picture(ground=ground), picture(ground=ground, objects=((thing, colour),))
    changed = np.abs(with_it - bare).max(2) > 0.05
    near = np.abs(with_it - np.array(COLOURS[colour])).max(2) < 0.17
    assert (changed & near).sum() > 40


@pytest.mark.parametrize("thing", sorted({name for k in range(400) for name, _ in scene(k).objects}))
def test_every_thing_is_seen(thing):
    time = "night" if thing in ("moon", "stars") else "day"
    colour = "red" if thing in NOUNS else ""
    if thing in SHAPES:
        found = picture(ground="", objects=((thing, colour),), backdrop="blue")
        bare = np.broadcast_to(COLOURS["blue"], found.shape)
    else:
        found, bare = picture(time=time, objects=((thing, colour),)), picture(time=time)
    assert (np.abs(found - bare).max(2) > 0.1).sum() > 60


def test_what_is_held_out_is_never_rendered_unless_asked_for():
    assert not any(HELD_OUT & scene(k).pairs for k in range(2000))
    assert any(HELD_OUT & scene(k, held_out=True).pairs for k in range(200))
    assert ("desert", "night") in Scene(0, "desert", "night").pairs
    assert ("circle", "green") in Scene(0, "", objects=(("circle", "green"),), backdrop="red").pairs


@pytest.mark.parametrize("kind", [kind for kind in ODDS if kind != "bent"])
def test_spoilt_latents_lie_between_the_picture_and_nothing_of_it(kind):
    torch.manual_seed(0)
    z, codebook = torch.randn(400, 4, 6, 6), torch.randn(50, 4)
    spoilt, share = spoil(z, codebook, ODDS[kind])
    lost = (spoilt - z).flatten(1).norm(dim=1) / z.flatten(1).norm(dim=1)
    assert spoilt.shape == z.shape and share.shape == (400,) and share.min() >= 0 and share.max() <= 1
    assert 0.3 < lost.median() < 1.2 and lost.max() < 2.5
    assert np.corrcoef(lost, share)[0, 1] > 0.3
    if kind == "random":
        assert lost.min() < 0.1 and 0.4 < lost.median() < 1.2 and lost.max() > 1.2


def test_bent_latents_are_mostly_those_of_the_other_picture():
    torch.manual_seed(0)
    z, others, codebook = torch.randn(400, 4, 6, 6), torch.randn(400, 4, 6, 6), torch.randn(50, 4)
    spoilt, share = spoil(z, codebook, ODDS["bent"], others)
    far = (spoilt - others).flatten(1).norm(dim=1) / others.flatten(1).norm(dim=1)
    assert spoilt.shape == z.shape and share.min() >= 0 and share.max() <= 1
    assert far.median() < 0.5 and 0.5 < (far < 0.45).float().mean() < 0.9


def test_others_shine_through_where_they_are_given():
    torch.manual_seed(0)
    z, others, codebook = torch.randn(60, 4, 6, 6), torch.randn(60, 4, 6, 6), torch.randn(50, 4)
    spoilt, share = spoil(z, codebook, (0, 0, 0, 1, 0, 0, 0, 0, 0, 0), others)
    assert torch.allclose(spoilt, z + share.view(-1, 1, 1, 1) * (others - z), atol=1e-5)


@pytest.mark.parametrize("what", [{"ground": "meadow", "objects": (("house", "red"), ("birds", ""))},
                                  {"ground": "", "objects": (("circle", "red"),), "backdrop": "blue"}])  # fmt: skip
def test_a_scene_without_its_things_is_otherwise_the_same(what):
    with_them, bare = (render(s).astype(int) for s in (Scene(3, **what), without_things(Scene(3, **what))))
    changed = np.abs(with_them - bare).max(2) > 8
    assert 0.01 < changed.mean() < 0.5
    where = render_and_things(Scene(3, **what))[1]
    assert where[np.abs(with_them - bare).max(2) > 20].all() and where.sum() < 3 * changed.sum()  # with a margin
    assert not render_and_things(without_things(Scene(3, **what)))[1].any() or not what["ground"]


@pytest.mark.parametrize("other", [{"weather": "clouds"}, {"objects": (("castle", ""),)}, {"objects": ()}])
def test_whatever_else_a_scene_shows_its_land_stays_where_it_was(other):
    of = Scene(3, "mountains", objects=(("house", "red"), ("sun", "")))
    one, two = (render_and_things(each) for each in (of, replace(of, **other)))
    land = np.s_[SIDE * 3 // 4 :]
    same = ~(one[1] | two[1])[land]
    assert same.mean() > 0.3 and np.array_equal(one[0][land][same], two[0][land][same])


@pytest.mark.parametrize("ground", SANDED)
def test_some_of_the_other_lands_have_sands_colour_at_any_hour_so_that_by_night_there_is_sand(ground):
    """Nothing else had: what is so coloured was never seen by night, and beaches by night came as sunsets."""

    day, night = (np.stack([render(Scene(k, ground, time)) for k in range(60)]) for time in ("day", "night"))
    red, _, blue = day[:, -4:].mean((1, 2)).T
    sandy = red - blue > 60
    assert 0.2 < sandy.mean() < 0.55
    by_night = night[:, -4:, :, 0].mean((1, 2))
    assert by_night[sandy].min() > by_night[~sandy].max()  # darker than by day, and lighter than what is there else
    foam = (day[:, SIDE // 2 :].min(3) > 220).any(1).mean(1) > 0.9
    assert 0.2 < foam[sandy].mean() < 0.8 and not foam[~sandy].any()  # some of it lies by water
    assert {pair for pair in HELD_OUT if pair[1] == "night"} == {("desert", "night"), ("beach", "night")}


@pytest.mark.parametrize("weather", ["snowfall", "rain"])
def test_flakes_and_streaks_are_strewn_evenly_and_lie_where_others_nearly_lie(weather):
    clear, *shown = (render_and_things(Scene(seed, "meadow", weather=kind))
                     for seed, kind in ((3, "clear"), (3, weather), (4, weather), (5, weather)))  # fmt: skip
    assert not clear[1].any()
    for _, where in shown:
        assert 0.1 < where.mean() < 0.8
        assert all(quarter.any() for half in np.split(where, 4) for quarter in np.split(half, 4, 1))
    (_, one), (_, other), _ = shown
    assert (one & other).sum() > 0.6 * one.sum() > (one & np.roll(other, SIDE // 14, 1)).sum()


def test_other_things_stand_where_the_first_ones_stood_and_are_never_held_out():
    rng = np.random.default_rng(0)
    changed = 0
    for k in range(300):
        other = with_other_things(scene(k), rng)
        assert not HELD_OUT & other.pairs
        assert (other.ground, other.time, other.weather) == (scene(k).ground, scene(k).time, scene(k).weather)
        assert all((name in SHAPES) == (not other.ground) for name, _ in other.objects)
        changed += other.objects != scene(k).objects
    assert changed > 100
    of = Scene(3, "", objects=(("circle", "red"),), backdrop="blue")
    apart = np.abs(render(of).astype(int) - render(replace(of, objects=(("square", "red"),)))).max(2) > 8
    assert 0.005 < apart.mean() < 0.2


@pytest.mark.parametrize("number", range(2 * len(FAMILIES)))
def test_kin_differ_in_one_thing_and_say_so(number):
    kind, one = FAMILIES[number % len(FAMILIES)], family(number, np.random.default_rng(number))
    shown = [render_and_things(kin(number * SIZE + k)) for k in range(SIZE)]
    pictures, places = (np.stack(each) for each in zip(*shown, strict=True))
    assert len({picture.tobytes() for picture in pictures}) == len(set(one.texts)) == SIZE
    shared = frozenset.intersection(*one.said)
    for k, (facts, said, where) in enumerate(zip(one.facts, one.said, places, strict=True)):
        (own,) = said - shared
        assert facts == sayable(kin(number * SIZE + k)) and said <= facts
        assert sum(own in others for others in one.facts) == 1
        assert where.any() or kind in ("ground", "weather", "time")
    words = {own.split(" ")[-1] for said in one.said for own in said - shared}
    assert (len(words) == 1) == (kind in ("colour", "tint", "backdrop")) or kind == "thing"
    assert all(bool(of.ground) != (kind in PLAIN) for of, _ in relatives(number))
    elsewhere = ~np.logical_or.reduce(places)
    if kind in ("shape", "colour", "tint"):
        assert np.abs(pictures[:, elsewhere].astype(int) - pictures[0][elsewhere]).max() < 12


def test_families_of_things_have_one_of_each_thing_and_none_of_kin_is_held_out():
    seen = set()
    for k in range(40 * len(FAMILIES) * SIZE):
        assert not HELD_OUT & kin(k).pairs
        if FAMILIES[k // SIZE % len(FAMILIES)] == "thing":
            seen |= {name for name, _ in kin(k).objects}
    assert seen == {*THINGS, "rainbow"}


def test_scattered_things_stand_in_every_land_but_where_they_are_held_out():
    met = set()
    for k in range(4000):
        of = scattered(k)
        assert not HELD_OUT & of.pairs
        assert of == scene(k) or k % 2 and (of.ground, of.time, of.weather) == (
            scene(k).ground, scene(k).time, scene(k).weather)  # fmt: skip
        met |= {(of.ground, name) for name, _ in of.objects if name in STANDING}
    assert met == {(ground, thing) for ground in GROUNDS for thing in STANDING} - HELD_OUT
    assert {pair for k in range(4000) for pair in scattered(k, held_out=True).pairs} > HELD_OUT


def test_a_caption_is_to_lie_where_the_sum_of_its_parts_does():
    facts = {fact for k in range(3000) for fact in scene(k).facts}
    assert {part for fact in facts for part in parts(fact)} == {*all_parts()}
    assert {*parts("red house")} == {"red", "house"} and parts("snowy mountains") == ("snowy mountains",)
    assert parts("red background") == ("red background",)  # another red than a thing's
    sums = Sums(8)
    adds = dict(zip(all_parts(), sums.adds, strict=False))
    wanted = sums.adds[-1] + adds["red"] + adds["house"] + adds["desert"]
    rows = sums(torch.from_numpy(marked([{"red house", "house", "desert"}, {"desert"}])))
    assert torch.allclose(rows[0], wanted / wanted.norm(), atol=1e-6)
    assert torch.allclose(rows.norm(dim=1), torch.ones(2))
    assert torch.cosine_similarity(rows[1], sums.adds[-1] + adds["desert"], 0) > 0.999


def test_sums_begin_where_texts_lie():
    torch.manual_seed(0)
    hidden, found, rng = Sums(16), Sums(16), np.random.default_rng(0)
    said = torch.from_numpy(marked(caption(scene(k), rng)[1] for k in range(1500)))
    with torch.no_grad():
        read = hidden(said)
        assert torch.cosine_similarity(found(said), read).mean() < 0.5
        found.fit(said, read)
        assert torch.cosine_similarity(found(said), read).mean() > 0.95


def test_facts_are_marked_and_all_of_them_are_known():
    facts = {fact for k in range(3000) for fact in scattered(k).facts}
    assert facts <= {*FACTS} and len(set(FACTS)) == len(FACTS)
    marks = marked([facts, [], ["desert", "red house"]])
    assert {fact for fact, true in zip(FACTS, marks[0], strict=True) if true} == facts
    assert marks.shape == (3, len(FACTS)) and marks.sum(1).tolist() == [len(facts), 0, 2]


def test_the_projection_is_read_off_the_patches_that_were_made_of_it():
    torch.manual_seed(0)
    weight = torch.linalg.qr(torch.randn(48, 6))[0].T * torch.tensor([3.0, 2.0, 1.0, 0.5, 0.2, 0.1])[:, None]
    adds = torch.linalg.pinv(weight).T / 2
    assert torch.allclose(uneven(even(adds, weight)), weight, atol=1e-5)


def test_codes_are_moved_on_where_the_projection_is_kept():
    small = dict(double_z=False, z_channels=32, resolution=128, in_channels=3, out_ch=3, ch=32, ch_mult=[1, 1, 1, 1],
                 num_res_blocks=0, attn_resolutions=[], dropout=0.0)  # fmt: skip
    painting = PaintersTraining(small, 32, 8, 1e-3, 1, 0.0, 0.0, 1, 0.0)
    lands, shapes = ([render(of) for of in map(scene, range(200)) if bool(of.ground) == land][:12]
                     for land in (True, False))  # fmt: skip
    painting.fit_codes(np.stack(lands), 2000, 4, seed=0)
    weight, codes = painting.weight.clone(), painting.painter.quantize.embedding.weight.clone()
    painting.fit_codes(np.stack(shapes), 2000, 0, seed=0, further=True)
    assert torch.equal(painting.painter.quantize.embedding.weight, codes)  # no round, no move
    painting.fit_codes(np.stack(shapes), 2000, 4, seed=0, further=True)
    assert torch.equal(painting.weight, weight)
    images = floats(np.stack(shapes)) * 2 - 1
    exact = project(images, weight, painting.mean, painting.f)
    after = painting.painter.embed(painting.codes(images))
    painting.painter.quantize.embedding.weight.data = codes
    before = painting.painter.embed(painting.codes(images))
    assert (after - exact).square().mean() < 0.8 * (before - exact).square().mean()


def test_bent_pictures_are_out_of_shape_by_a_few_pixels():
    torch.manual_seed(0)
    along = torch.linspace(0, 1, 128).expand(20, 3, 128, 128)  # each pixel is its own place
    pushed = (bend(along) - along).abs() * 127
    assert pushed.mean(dim=(1, 2, 3)).max() > 1 and 4 < pushed.max() < 30


def test_a_direction_is_judged_in_the_things_places_by_itself():
    torch.manual_seed(0)
    way, share, where = torch.randn(6, 3, 16, 16), torch.ones(6), torch.zeros(6, 1, 16, 16)
    where[..., 2:4, 2:4] = 1  # 4 of 256 pixels
    astray = torch.where(where > 0, -way, way)
    right, wrong = (ahead(uphill, way, share, where) for uphill in (way, astray))
    assert right < 0.01 and wrong > 2 / 3  # a third of it is all astray
    half = torch.where(torch.arange(6).view(6, 1, 1, 1) < 3, where, 0.0)
    assert right < ahead(torch.where(half > 0, -way, way), way, share, where) < wrong


def test_captions_mention_only_what_is_true():
    rng = np.random.default_rng(0)
    for k in range(300):
        shown = scene(k)
        text, said = caption(shown, rng)
        assert text.strip() and said and said <= sayable(shown) <= shown.facts


def test_nobody_says_snow_who_means_snowy_mountains_or_snowfall():
    for ground, weather, unsaid in (("snowy mountains", "clear", {"snow", "mountains"}), ("beach", "clear", {"sea"}),
                                    ("city", "snowfall", {"snow"}), ("snow", "snowfall", set())):  # fmt: skip
        shown = Scene(1, ground, weather=weather)
        assert shown.facts - sayable(shown) == unsaid


def test_captions_repeat_with_their_seed_and_vary_without():
    shown = scene(8)
    texts = [caption(shown, np.random.default_rng(seed)) for seed in range(30)]
    assert texts == [caption(shown, np.random.default_rng(seed)) for seed in range(30)]
    assert len(set(texts)) > 10


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_fact_has_words_in_every_language(language):
    rng = np.random.default_rng(0)
    for fact in {fact for k in range(3000) for fact in scene(k).facts}:
        assert phrase(fact, language, rng).strip()


def test_colours_agree_with_their_nouns():
    rng = np.random.default_rng(1)
    assert {phrase("red sailboat", "ru", rng) for _ in range(40)} == {
        "красный парусник", "красная лодка", "красный корабль"}  # fmt: skip
    assert phrase("red flowers", "de", rng) == "rote Blumen"
    assert phrase("red house", "es", rng) == "casa roja"


def test_a_background_behind_a_shape_is_said_as_one_says_it():
    rng = np.random.default_rng(1)
    said = {language: {behind("yellow background", language, rng) for _ in range(60)} for language in LANGUAGES}
    assert said["ru"] == {"на жёлтом", "на жёлтом фоне"}
    assert said["de"] == {"auf gelbem Hintergrund", "auf gelbem Grund"}
    assert {"on yellow", "on a yellow background", "on yellow ground"} <= said["en"]
    assert said["es"] == {"en amarillo", "en fondo amarillo", "en un fondo amarillo"}
    known = Vocabulary(48)
    known.encode([text for texts in said.values() for text in texts])  # all of it is in the vocabulary
    known.encode(["желтый шар и елка", "зеленый круг на черном"])  # as most people type it


def told(kind: str, seed: int) -> tuple[Scene, Told]:
    """A land with something in it, and what a walker is told of it in two texts of a kind."""
    of = next(of for k in itertools.count(100 * seed) if (of := scattered(k)).ground and of.objects)
    return of, tell(of, np.random.default_rng(seed), {kind: 1.0})


@pytest.mark.parametrize("seed", range(8))
def test_a_walker_that_is_told_two_texts_has_goals_that_both_agree_with(seed):
    of, both = told("split", seed)
    assert 0 < both.weight < 1 and both.caption[1] | both.beside[1] <= sayable(of)
    assert (both.goal(3)[0] == render(replace(of, seed=3))).all()
    of, both = told("mixed", seed)
    other = {ground for ground in GROUNDS if ground in both.beside[1]}
    share = 1 - np.abs(both.goal(3)[0].astype(float) - render(replace(of, seed=3))).mean((0, 1)).max() / 255
    assert 0 < both.weight < 1 and of.ground not in other and 0.3 < share < 1
    of, both = told("shunned", seed)
    (shunned,) = both.beside[1]
    left = replace(of, objects=tuple(one for one in of.objects if one[0] != shunned),
                   weather="clear" if shunned == of.weather else of.weather)  # fmt: skip
    assert -1 < both.weight < 0 and shunned in of.facts and left != of
    assert (both.goal(3)[0] == render(replace(left, seed=3))).all()


def test_two_lands_lie_beside_each_other_by_their_weights():
    desert = next(of for k in itertools.count() if (of := scene(k)).ground == "desert")
    snow = replace(desert, ground="snow")
    first, second = (render(replace(one, seed=5)).astype(float) for one in (desert, snow))
    for weight in (0.2, 0.5, 0.8):
        picture, _ = mixture(desert, snow, weight, 5)
        differ = np.abs(first - second).sum(2) > 60
        nearer = (np.abs(picture - second).sum(2) < np.abs(picture - first).sum(2))[differ].mean()
        assert abs(nearer - weight) < 0.25


def test_the_vocabulary_covers_all_captions():
    bpe, rng = tokenizer(), np.random.default_rng(2)
    known = {token for text in all_words() for token in bpe.encode(text)}
    for k in range(300):
        text = caption(scene(k), rng)[0]
        assert known.issuperset(bpe.encode(text)) and known.issuperset(bpe.encode(reworded(text, rng, often=1.0)))


def test_a_picture_is_not_told_from_texts_of_what_was_held_out_beside_what_it_shows():
    facts = marked([sayable(Scene(3, "sea", time)) for time in ("night", "day")])
    said = marked([{"sea"}, {"beach"}, {"city"}])
    shown, said = (torch.from_numpy(each).float() for each in (facts, said))
    unheard = shown @ never_together() @ said.mT > 0
    assert unheard.tolist() == [[False, True, False], [False, False, False]]  # no beach was rendered by night
    right = torch.tensor([[True, False, False]] * 2)
    logits = torch.zeros(2, 3, requires_grad=True)
    loss = agree(logits, right, unheard, torch.tensor([1.0, 0.0]))
    assert loss.item() == pytest.approx(np.log(2))
    loss.backward()
    assert logits.grad[0].tolist() == pytest.approx([-0.5, 0, 0.5])
    assert agree(logits, right, unheard, torch.ones(2)).item() == pytest.approx((np.log(2) + np.log(3)) / 2)


def test_walkers_take_turns_and_begin_anew_at_different_steps():
    taken = [turn for step in range(60) for turn in turns(step, count=6, length=5, each=2)]
    assert len(taken) == 120 and {walker for walker, _, _ in taken} == set(range(6))
    for walker in range(6):
        mine = [(walk, begins) for who, walk, begins in taken if who == walker]
        assert mine[0][1]  # nobody walks who has not begun
        assert all(begins == (walk != before) for (before, _), (walk, begins) in zip(mine, mine[1:], strict=False))
        assert max(sum(walk == w for walk, _ in mine) for w in range(9)) == 5
    assert len({walk for _, walk, _ in taken[:6]}) > 1


SEATS = 6  # of scenes, where walkers and kin have theirs
LOOKED = 2 * LOOKS + len(FAMILIES) + SEATS
PAINTED = int(LOOKED * 0.9)


@pytest.fixture(scope="module")
def batches():
    """Batches of 48 scenes from a step on, in which walkers walk from step 3 on."""
    painted = {"scene": np.arange(48), "odds": np.full(48, 1 / 48)}
    words = Vocabulary(48)

    def begin(skip: int = 0, **changes) -> Captioned:
        arguments = dict(batch=LOOKED, rounds=1, loose=16, seed=0, painted_from=2, part=0.9, walkers=(4, 5, 2),
                         walking_from=3)  # fmt: skip
        return Captioned(48, 2, painted, words, **{**arguments, **changes}, skip=skip)

    return begin


def test_a_batch_names_as_many_pictures_as_it_has_texts(batches):
    for step, batch in zip(range(8), batches(), strict=False):
        walking = step >= 3
        assert len(batch.pairs) == (len(FAMILIES) if walking else 0) and len(batch.walkers) == (2 if walking else 0)
        assert len(batch.scenes) == (SEATS if walking else LOOKED)
        assert len(batch.painted) == (0, 0, PAINTED, SEATS - (LOOKED - PAINTED))[min(step, 3)]
        everyone = len(batch.scenes) + len(batch.pairs) + len(batch.walkers)
        assert len(batch.texts) == len(batch.facts) == len(batch.said) == everyone
        assert not (batch.said & ~batch.facts).any() and batch.said.any(1).all()
        assert len(batch.families) == len(FAMILIES) and len(batch.kin_texts) == len(FAMILIES) * SIZE
        assert len(batch.loose) == len(batch.mentioned) == len(batch.walkers) + 16
        assert len(batch.loose.unique(dim=0)) > 8 and len(batch.weights) == len(batch.walkers)
        of_one = batch.weights == 0  # no second text: the first once more
        own = batch.texts[len(batch.texts) - len(of_one) :]
        assert torch.equal(own[of_one], batch.loose[: len(of_one)][of_one])
        tail = batch.scenes[len(batch.scenes) - len(batch.painted) :]
        assert torch.equal(tail, batch.painted)  # the scenes that were painted are those of which it was done
        for number, (become, are) in zip(batch.families.tolist(), batch.pairs.tolist(), strict=False):
            assert become != are and {become, are} <= {*range(number, number + SIZE)}
        of = [sayable(kin(int(k))) for k in batch.pairs[:, 0]] if walking else []
        for facts, marks in zip(of, batch.facts[len(batch.scenes) :], strict=False):
            assert {fact for fact, true in zip(FACTS, marks, strict=True) if true} == facts


def test_a_walker_keeps_its_goals_and_caption_until_it_begins_anew(batches):
    told: dict[int, tuple] = {}
    for _, batch in zip(range(40), batches(), strict=False):
        begun, aimed = batch.walkers[batch.new].tolist(), batch.aimed.tolist()
        assert aimed == begun and len(batch.goals) == len(batch.places) == len(begun)
        for walker, goals, places in zip(aimed, batch.goals, batch.places, strict=True):
            assert len({one.numpy().tobytes() for one in goals}) == GOALS  # the same scene, otherwise laid out
            k = batch.walkers.tolist().index(walker) - len(batch.walkers)
            shapes = batch.facts[k][[FACTS.index(shape) for shape in SHAPES]]
            assert places.flatten(1).any(1).all() or not shapes.any()
        for k, walker in enumerate(batch.walkers.tolist(), len(batch.texts) - len(batch.walkers)):
            now = batch.texts[k].tolist(), batch.facts[k].tolist()
            assert walker in begun or now == told[walker]
            told[walker] = now


def test_training_goes_on_with_the_batches_it_would_have_had_and_others_may_draw_them(batches):
    whole = [batch for _, batch in zip(range(9), batches(), strict=False)]
    for k, batch in zip(range(5, 9), batches(skip=5), strict=False):
        for name, theirs, ours in zip(Batch._fields, whole[k], batch, strict=True):
            assert name in ("aimed", "goals", "places") or torch.equal(theirs, ours), name
    first = next(iter(batches(skip=5)))
    assert first.aimed.tolist() == first.walkers.tolist()  # nobody knows their goals any more
    loader = torch.utils.data.DataLoader(batches(), batch_size=None, num_workers=2, multiprocessing_context="fork")
    for theirs, ours in zip(whole, loader, strict=False):
        assert torch.equal(theirs.scenes, ours.scenes) and torch.equal(theirs.texts, ours.texts)


def test_pictures_go_where_training_goes_and_are_no_part_of_what_it_saves(tmp_path):
    scenes, kins = rendered(tmp_path, 4, of=scattered), rendered(tmp_path, SIZE, of=kin)
    again = rendered(tmp_path, 4, of=scattered)
    assert all((a == b).all() for a, b in zip(scenes, again, strict=True))
    assert (scenes[0][2] == render(scattered(2))).all() and (scenes[1][2] == render_and_things(scattered(2))[1]).all()
    stock = Stock(scenes, kins, {"picture": scenes[0], "share": np.zeros(4, np.float16)}, walkers=3)
    assert torch.equal(floats(stock.pictures[:1]), floats(render(scattered(0))[None])) and not stock.state_dict()
    assert stock.goals.shape == (3, GOALS, SIDE, SIDE, 3) and stock.share.dtype == torch.float32


class Plain(torch.nn.Module):
    """Painter and mosaic at once: a code is two colours, the one of its left and the one of its right half."""

    def __init__(self):
        super().__init__()
        self.codebook = torch.rand(64, 6, generator=torch.Generator().manual_seed(0))

    def codes(self, z):
        return torch.cdist(z.permute(0, 2, 3, 1).flatten(0, 2), self.codebook).argmin(1).view(-1, *z.shape[2:])

    def latent(self, images):
        return torch.cat([images[..., ::2, ::2], images[..., ::2, 1::2]], 1)

    def paint(self, codes):
        halves = self.codebook[codes].permute(0, 3, 1, 2).chunk(2, 1)
        return torch.stack(halves, -1).flatten(3).repeat_interleave(2, 2)

    def back(self, grad):
        return torch.cat([grad[..., ::2].unfold(2, 2, 2).sum(-1), grad[..., 1::2].unfold(2, 2, 2).sum(-1)], 1)


class Coarse(Plain):
    """The same in pictures of SIDE pixels: a code is four by eight of them."""

    def latent(self, images):
        return super().latent(images[..., ::4, ::4])

    def paint(self, codes):
        return super().paint(codes).repeat_interleave(4, 2).repeat_interleave(4, 3)

    def back(self, grad):
        return super().back(torch.nn.functional.avg_pool2d(grad, 4))


def test_walkers_begin_at_nothing_or_near_their_goal_and_come_nearer_when_led_there():
    torch.manual_seed(0)
    plain = Plain()
    walkers, which = Walkers(plain.paint, plain, count=70, grid=4, length=20), torch.arange(5, 65)
    whole = plain.paint(torch.randint(64, (60, 4, 4)))
    walkers.begin(which, whole)
    away = [(walkers(which) - whole).abs().mean((1, 2, 3))]
    share = walkers.share[which].flatten()
    assert 0.15 <= share.min() and 0.3 < (share == 1).float().mean() < 0.7
    assert np.corrcoef(away[0], share)[0, 1] > 0.5
    for _ in range(20):
        walkers.walk(which, whole - walkers(which))
        away.append((walkers(which) - whole).abs().mean((1, 2, 3)))
    assert away[-1].mean() < 0.5 * away[0].mean()
    assert not walkers.z[:5].any() and not walkers.z[65:].any()


def test_a_walker_is_stirred_less_and_less():
    torch.manual_seed(0)
    plain = Plain()
    walkers, which = Walkers(plain.paint, plain, count=40, grid=4, length=10), torch.arange(40)
    walkers.begin(which, plain.paint(torch.randint(64, (40, 4, 4))))
    moved = []
    for _ in range(10):
        before = walkers.z.clone()
        walkers.walk(which, torch.zeros(40, 3, 8, 8))
        moved.append(float((walkers.z - before).abs().mean()))
    assert moved[0] > moved[3] > moved[6] > 0 and moved[8] == moved[9] == 0


def test_a_walker_chooses_the_goal_whose_thing_is_where_it_paints_one():
    plain = Plain()
    walkers = Walkers(plain.paint, plain, count=1, grid=8, length=10)
    left, right = torch.full((2, 3, 16, 16), 0.5)
    left[:, 2:6, 2:6], right[:, 2:6, 10:14] = 1.0, 1.0
    places = torch.stack([left, right])[:, :1].gt(0.9).float()[None]
    right[:, 10:] = 0.0  # its land is another, which is more of a picture than its thing
    goals, which = torch.stack([left, right])[None], torch.tensor([0])
    begun = torch.full((3, 16, 16), 0.5)
    for thing, nearest in ((slice(2, 6), 0), (slice(10, 14), 1)):
        now = begun.clone()
        now[:, 2:6, thing] = 0.8
        walkers.z[which] = plain.latent(now[None])
        assert walkers.nearest(which, goals, places).tolist() == [nearest]
        assert walkers.nearest(which, goals, torch.zeros_like(places)).tolist() == [0]


@pytest.mark.parametrize("dtype, close", [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_the_tower_written_out_sees_and_leads_as_the_network_itself(dtype, close):
    torch.manual_seed(0)
    network = openai_clip("model").CLIP(16, 32, 2, 128, 8, 8, 50, 64, 1, 1)
    tiny.unsettle(network, torch.Generator().manual_seed(1))
    mean, std = torch.rand(2, 1, 3, 1, 1) + 0.2
    glimpses, read = torch.rand(5, 3, 32, 32, requires_grad=True), torch.randn(5, 16)
    with sdpa_kernel(SDPBackend.MATH):
        theirs = torch.nn.functional.normalize(network.encode_image((glimpses - mean) / std), dim=1)
        (way,) = torch.autograd.grad((theirs * read).sum(), glimpses, create_graph=True)
        way.square().sum().backward()
    weights = dict(network.visual.named_parameters())
    (learnt,) = (weights["conv1.weight"].grad.clone(),)
    network.zero_grad()
    seen, led = uphill(weights, glimpses.detach(), read, mean, std, dtype)
    led.square().sum().backward()
    for ours, right in ((seen, theirs), (led, way), (weights["conv1.weight"].grad, learnt)):
        assert (ours - right).norm() < close * right.norm()


def test_a_direction_in_glimpses_goes_back_to_where_they_were_cut():
    torch.manual_seed(0)
    ways = torch.rand(2, 3, 4, 9).unbind(0)
    images, direction = torch.rand(3, 2, 9, 9, requires_grad=True), torch.randn(3, 2, 4, 4)
    (back,) = torch.autograd.grad(cut(images, ways), images, direction)
    assert torch.allclose(uncut(direction, ways), back, atol=1e-5)


def test_guidance_takes_what_all_texts_have_in_common_out_of_each():
    clip = tiny.clip()
    texts = ["a desert", "snow on mountains", "the sea at night", "fog", "a red house in the snow"]
    rows = tiny.tokenize(texts)
    with torch.no_grad():
        before = clip.encode_text(rows)
        guide(clip, rows, 0.4)
        after = clip.encode_text(rows)
    assert torch.allclose(after, before - 0.4 * before.mean(0), atol=1e-4 * before.abs().max())
    alike, less = (torch.nn.functional.cosine_similarity(x[:, None], x[None], dim=2).mean() for x in (before, after))
    assert less < alike - 0.05


def test_walkers_are_told_what_runs_are_told():
    torch.manual_seed(0)
    first, second = (torch.nn.functional.normalize(torch.randn(3, 8)) for _ in range(2))
    common, weight = 0.5 * torch.randn(8), torch.tensor([0.0, 0.25, -0.5])
    as_unit = partial(torch.nn.functional.normalize, dim=0)
    told = as_runs(first, second, weight, common)
    assert torch.allclose(told.norm(dim=1), torch.ones(3))
    assert torch.allclose(told[0], as_unit(first[0] - common))
    assert torch.allclose(told[1], as_unit(0.75 * first[1] + 0.25 * second[1] - common))
    assert torch.allclose(told[2], as_unit(first[2] - second[2]))  # nothing in common is left to take out


@pytest.fixture
def talking():
    """A CLIP that knows the words of captions and no more, its vocabulary, and where its texts lie as sums of parts."""
    torch.manual_seed(0)
    vocabulary = Vocabulary(48)
    clip = openai_clip("model").CLIP(16, 32, 1, 64, 8, 48, len(vocabulary.ids), 64, 1, 1).requires_grad_(False)
    sums = Sums(16)
    sums.fit(*said_and_read(clip, vocabulary))
    return clip, vocabulary, sums


def row(part: str) -> int:
    return all_parts().index(part)


def test_what_a_part_adds_is_made_of_what_was_found_and_of_other_texts(talking):
    *_, sums = talking
    found, mean = torch.randn_like(sums.adds), torch.randn(16)
    led = OmegaConf.create({"forest": {"adds": 0.5, "mix": {"forest": 0.25, "house": -0.125, "mean": 2}},
                            "rain": {"adds": 0, "mix": {"clear": -1}}})  # fmt: skip
    changed, texts = change(sums, found, mean, led), sums.adds.detach()
    expected = 0.5 * found[row("forest")] + 0.25 * texts[row("forest")] - 0.125 * texts[row("house")] + 2 * mean
    assert torch.allclose(changed[row("forest")], expected, atol=1e-5)
    assert torch.allclose(changed[row("rain")], -texts[row("clear")])
    assert sorted(changed.any(1).nonzero().flatten().tolist()) == sorted([row("forest"), row("rain")])


def test_texts_are_taught_what_their_parts_add_and_new_words_what_they_mean(monkeypatch):
    clip, vocabulary = kept_clip(read_recipe([f"begin={EMBEDDED}"]))
    monkeypatch.setattr("training.captions.SAME", {"green red": "snow"})
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    asked = ["a forest", "woods at night", "a meadow", "a red house by the sea", "green red", "snow"]
    forests, others, new, known = [0, 1], [2, 3], 4, 5
    with torch.no_grad():
        said = raw(clip, vocabulary, asked)
    sums = Sums(said.shape[1])
    adds = torch.zeros_like(sums.adds)
    adds[row("forest")] = 0.6 * said.norm(dim=1).mean() * torch.nn.functional.normalize(torch.randn(192), dim=0)
    t = OmegaConf.create({"taught": {"steps": 60, "lr": 0.001, "batch": 48, "languages": {"en": 1.0}}})
    teach(clip, vocabulary, sums, adds, t, seed=0)
    right = said.clone()
    right[forests] += adds[row("forest")]
    right[new] = said[known]
    with torch.no_grad():
        first, now = (torch.nn.functional.cosine_similarity(x, right) for x in (said, raw(clip, vocabulary, asked)))
    left = (1 - now) / (1 - first)
    assert left[forests].max() < 0.5 and left[new] < 0.5
    assert now[others].min() > 0.97
    assert all((value == before[f"visual.{name}"]).all() for name, value in clip.visual.state_dict().items())
    assert not any(p.requires_grad for name, p in clip.named_parameters() if not name.startswith("visual."))


def test_a_trial_asks_for_the_part_in_question_and_for_no_test_prompt():
    test = {frozenset(p["facts"]) for p in read_prompts()["test"]}
    for part in ("rain", "clouds", "cactus", "red"):
        asked = trial.prompts(part, 6, seed=0, things=0.0)
        assert len({text for text, _ in asked}) == 6 and asked == trial.prompts(part, 6, seed=0, things=0.0)
        assert all(part in " ".join(facts).split(" ") and frozenset(facts) not in test for _, facts in asked)


def test_a_trial_paints_with_shares_of_other_texts_and_leaves_the_pair_as_it_was():
    def painted(*shares):
        settings = {"steps": 3, "size": (32, 32), "cutouts": 2}
        return trial.paint(("rain over the sea", 0), "rain", shares, EMBEDDED, **settings)

    plain, without_dawn = painted(), painted(("dawn", -0.4))
    assert plain.shape == (32, 32, 3) and not (without_dawn == plain).all()
    assert (painted(("dawn", 0.0)) == plain).all() and (painted() == plain).all()


def test_a_land_an_hour_or_weather_may_be_said_twice_and_nothing_else_is():
    rng, said = np.random.default_rng(0), ["red house", "snow", "dawn"]
    found = {" ".join(said_twice(said, rng)) for _ in range(50)}
    assert found == {"red house snow dawn", "red house snow snow dawn", "red house snow dawn dawn"}
    assert said_twice(["red circle", "blue background"], rng, often=1.0) == ["red circle", "blue background"]


def test_every_language_is_taught_to_say_what_english_does():
    clip, vocabulary = kept_clip(read_recipe([f"begin={EMBEDDED}"]))
    rng, facts = np.random.default_rng(0), [mentioned(scene(k), np.random.default_rng(k)) for k in range(40)]
    english, russian = ([reworded(worded(some, which, rng), rng) for some in facts] for which in ("en", "ru"))
    tokens = vocabulary.encode(russian).unique()

    def likeness() -> float:
        return float(torch.nn.functional.cosine_similarity(raw(clip, vocabulary, russian), meant).mean())

    with torch.no_grad():
        meant = raw(clip, vocabulary, english)
        clip.token_embedding.weight[tokens[~torch.isin(tokens, vocabulary.encode(english))]] = 0  # all of it forgotten
        sums, first = Sums(meant.shape[1]), likeness()
    t = OmegaConf.create({"taught": {"steps": 40, "lr": 0.001, "batch": 48, "languages": {"ru": 1.0}}})
    teach(clip, vocabulary, sums, torch.zeros_like(sums.adds), t, seed=0)
    with torch.no_grad():
        assert 1 - likeness() < 0.8 * (1 - first)


def test_walkers_find_what_parts_of_their_texts_are_to_add(talking):
    clip, vocabulary, sums = talking
    scenes = [Scene(k, "forest") for k in range(3)] + [Scene(3, "", objects=(("circle", "red"),), backdrop="black")]
    t = OmegaConf.create({"steps": 4, "lr": 0.1, "weight_decay": 0.0, "walkers": {"count": 3, "length": 2, "looks": 2}})
    before = {name: value.clone() for name, value in clip.state_dict().items()}

    def find() -> torch.Tensor:
        torch.manual_seed(0)
        plain = Coarse()
        walks = Walks(clip, vocabulary, sums, scenes, ["forest"], often=1.0, seed=5)
        return lead(clip, walks, Walkers(plain.paint, plain, 3, 16, 2), t, seed=5)

    found = find()
    assert found[row("forest")].any() and not found[row("red")].any()
    assert not found[-1].any()  # what guidance takes out stays out
    assert (find() == found).all()
    assert all((value == before[name]).all() for name, value in clip.state_dict().items())


def test_new_words_mean_what_captions_have(talking):
    _, vocabulary, _ = talking
    forms = [forms for words in (*WORDS.values(), *COLOUR_WORDS.values()) for forms in words.values()]
    known, rng = {word for each in forms for word in re.split("[| ]", each)}, np.random.default_rng(0)
    for new, same in SAME.items():
        assert set(same.split(" ")) <= known and new not in known
        words, meant = reworded(f"a {same} at night", rng, often=1.0), f"a {new} at night"
        pairs = zip(words.split(" "), meant.split(" "), strict=True)
        assert all(word in inflections(right) for word, right in pairs)
        vocabulary.encode([new])
    assert reworded("der Schneefall", rng, often=1.0) == "der Schneefall"  # whole words only


def test_russian_words_are_learnt_in_all_their_forms():
    assert {"пустыня", "пустыни", "пустыней", "пустыню"} <= set(inflections("пустыня"))
    assert {"снежный", "снежной", "снежную", "снежных"} <= set(inflections("снежная"))
    assert not set(inflections("звезда")) & set(inflections("звёзды"))  # a shape, and what is in the sky
    assert inflections("над") == ("над",) and inflections("идёт") == ("идёт",)
    rng, text = np.random.default_rng(0), "маяк над морем, ночь"
    seen = {reworded(text, rng) for _ in range(50)}
    assert text in seen and len(seen) > 20
    assert all(len(one.split(" ")) == 4 and one.split(" ")[1] == "над" for one in seen)
    assert reworded("a lighthouse at night", rng, often=1.0) == "a lighthouse at night"


MINIATURE = """
scenes=48 processes=1 save_every=4 accelerator=cpu precision=32-true
vqgan.n_embed=64 vqgan.patches=1500 vqgan.rounds=4 vqgan.batch=4 vqgan.steps={vqgan} vqgan.critic_from=10
sharper.steps={sharper} sharper.critic_from=4 vqgan.ddconfig.z_channels=32
clip.batch=33 clip.loose=8 clip.kin=1 clip.steps={clip} clip.painted_from=25 clip.walking_from=40 clip.walkers.count=6
clip.mean_from=0.6 clip.walkers.length=3 clip.walkers.each=1 clip.chunk=12 clip.chunks.random=1 clip.chunks.bare=1
clip.chunks.soft=1 clip.chunks.bent=1 clip.network.transformer_layers=1 clip.network.transformer_width=64
texts.steps=3 texts.rounds=1 texts.walkers.count=2 texts.taught.steps=4 texts.taught.batch=8
clip.network.transformer_heads=1 clip.network.embed_dim=32 clip.network.vision_layers=1 clip.network.vision_width=64
""".split()


def test_an_image_tower_stays_as_near_to_what_it_was_as_is_asked():
    one, other = tiny.clip(seed=1), tiny.clip(seed=2)
    before = {name: value.clone() for name, value in other.state_dict().items() if "resblocks.1" not in name}
    after = {name: value.clone() for name, value in one.state_dict().items()}
    stay_near(one, before, 0.25)
    for name, value in one.state_dict().items():
        near = name.startswith("visual.") and name in before
        expected = 0.75 * after[name] + 0.25 * before[name] if near else after[name]
        torch.testing.assert_close(value, expected)
    assert any(name.startswith("visual.") and "resblocks.1" in name for name in after)


def test_the_text_tower_of_another_pair_is_taken_with_its_guidance():
    clip, vocabulary = kept_clip(read_recipe([f"begin={EMBEDDED}"]))
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    shipped = load_file(EMBEDDED / "clip.safetensors")
    say_as(clip, vocabulary, EMBEDDED / "clip.safetensors")
    assert not torch.equal(clip.ln_final.bias, before["ln_final.bias"])  # guidance
    for name, value in clip.state_dict().items():
        if name.startswith("visual.") or name == "logit_scale":
            assert torch.equal(value, before[name])
        elif name != "token_embedding.weight":
            assert torch.equal(value, shipped[name].float())


def test_any_part_may_be_led_and_nothing_else_added():
    recipe = read_recipe(["texts.led.pine.adds=0", "texts.led.pine.mix.snow=-0.3", "texts.led.dawn.mix.day=-0.2"])
    assert recipe.texts.led.pine == {"adds": 0, "mix": {"snow": -0.3}} and recipe.texts.led.dawn.mix.day == -0.2
    for asked, wrong in (("clip.stpes=3", "stpes"), ("texts.led.pien={adds: 0, mix: {snow: -0.3}}", "no 'pien'"),
                         ("texts.led.mean={adds: 0, mix: {snow: -0.3}}", "no 'mean'"),
                         ("texts.led.pine={adds: 0, mix: {snwo: -0.3}}", "no 'snwo'"),
                         ("texts.led.pine.mix.snow=-0.3", "wants adds"), ("texts.led.city.mx=0", "mx")):  # fmt: skip
        with pytest.raises(AttributeError, match=wrong):
            read_recipe([asked])


def test_two_image_towers_meet_halfway_without_a_step(tmp_path):
    begin, shipped = tmp_path / "begin", load_file(EMBEDDED / "clip.safetensors")
    shutil.copytree(EMBEDDED, begin)
    write_weights({name: value * 2 if name == "visual.proj" else value for name, value in shipped.items()},
                  begin / "clip.safetensors")  # fmt: skip
    train(read_recipe([f"begin={begin}", f"clip.texts={EMBEDDED}", "clip.kept=0.5", "clip.steps=0", "texts.steps=0",
                       "scenes=4", "processes=1", f"folder={tmp_path / 'runs'}",
                       f"out={tmp_path / 'pair'}"]))  # fmt: skip
    made = load_file(tmp_path / "pair" / "clip.safetensors")
    assert made.keys() == shipped.keys()
    for name, value in made.items():
        torch.testing.assert_close(value, shipped[name] * 1.5 if name == "visual.proj" else shipped[name])


def curve(folder: Path, stage: str, name: str) -> list[float]:
    """A logged value over all versions of a stage."""
    files = sorted((folder / stage / "curves").glob("version_*/metrics.csv"))
    return [float(row[name]) for file in files for row in csv.DictReader(file.open()) if row.get(name)]


def kept(path: Path) -> dict:
    """The weights in a checkpoint of Lightning's."""
    return torch.load(path, map_location="cpu", weights_only=False)["state_dict"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_miniature_learns_resumes_and_paints(tmp_path):
    def run(vqgan: int, sharper: int, clip: int) -> None:
        changes = [line.format(vqgan=vqgan, sharper=sharper, clip=clip) for line in MINIATURE]
        train(read_recipe([*changes, f"folder={tmp_path / 'runs'}", f"out={tmp_path / 'pair'}"]))

    run(50, 10, 50)
    first = load_file(tmp_path / "pair" / "vqgan.safetensors")
    run(100, 20, 150)  # goes on where it stopped
    second = load_file(tmp_path / "pair" / "vqgan.safetensors")
    assert (first["quantize.embedding.weight"] == second["quantize.embedding.weight"]).all()
    assert (first["decoder.conv_out.weight"] != second["decoder.conv_out.weight"]).any()
    saved, third = kept(tmp_path / "runs/clip/last.ckpt"), load_file(tmp_path / "pair" / "clip.safetensors")
    assert saved["mean.n_averaged"] == 20 + 60  # of the last of fifty, and of a hundred and fifty
    assert torch.equal(third["visual.proj"], saved["mean.module.proj"].half())
    assert not torch.equal(third["visual.proj"], saved["clip.visual.proj"].half())
    told = {"vqgan": ("paint", "encode"), "clip": ("telling", "kin", "pointing", "sums")}
    for stage, name in [(stage, name) for stage, names in told.items() for name in names]:
        values = curve(tmp_path / "runs", stage, name)
        assert len(values) >= 4 and values[-1] < values[0], (name, values)
    run_ = vqclip.generate("desert", tmp_path / "pair" / "vqgan.safetensors", tmp_path / "pair" / "clip.safetensors",
                           steps=2, cutouts=2, size=(32, 32))  # fmt: skip
    frames = list(run_)
    assert len(frames) == 3 and all(np.isfinite(frame.similarity["desert"]) for frame in frames)
