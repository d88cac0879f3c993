"""The quality table: its prompts are what they claim, its figures are sums that can be done by hand."""

from collections import Counter

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

import training
from training.asked import lacks, named, read_prompts, scene_of, sweep, without
from training.captions import LANGUAGES, all_words
from training.judge import TINTED, WORTHY, Judge, Reading, load_judge, train
from training.measures import Seen, by_chance, ranks, spearman, tally, variation, verdicts
from training.quality import Row, attributes, negatives, paint, paint_all, plan, weights, worthy
from training.scenes import GROUNDS, HELD_OUT, TIMES, render, scene
from training.sheets import blind
from vqclip import Settings, parse
from vqclip.checkpoints import EMBEDDED
from vqclip.perceptor import tokenizer

BOOK = read_prompts()
PROMPTS = [*BOOK["test"], *BOOK["tuning"]]


def said(p: dict) -> str:
    return p["en"]


def reading(shown) -> Reading:
    """What a judge without fault sees in a scene."""
    colours = {**dict.fromkeys(TINTED, "brown"), **dict(shown.objects), "background": shown.backdrop or "brown"}
    return Reading(shown.ground, shown.time, shown.weather, frozenset(dict(shown.objects)), colours)


def seen(*facts: str, shows: tuple[str, ...] | None = None, path=None) -> Seen:
    return Seen(" and ".join(facts), 0, facts, path, reading(scene_of(shows or facts, 1)))


# -------------------------------------------------------------------------------------------------------- prompts


def test_there_are_enough_prompts_of_every_kind():
    facts = [named(p["facts"]) for p in BOOK["test"]]
    assert len(facts) >= 48 and len(BOOK["tuning"]) >= 20 and len(BOOK["weights"]) == 10
    assert len(BOOK["negatives"]) >= 15
    assert len({shown.facts for shown in facts}) == len(facts)
    grounds, times = Counter(shown.ground for shown in facts), Counter(shown.time for shown in facts)
    assert min(grounds[ground] for ground in GROUNDS) >= 4 and min(times[time] for time in TIMES) >= 8
    assert sum(bool(shown.weather) for shown in facts) >= 16
    scenes = [shown for shown in facts if shown.ground]
    assert sum(bool(shown.objects) for shown in scenes) >= 24
    assert sum(any(colour for _, colour in shown.objects) for shown in scenes) >= 14
    assert len(facts) - len(scenes) == 10


@pytest.mark.parametrize("p", BOOK["test"], ids=said)
def test_what_is_asked_was_never_rendered(p):
    assert named(p["facts"]).pairs & HELD_OUT


@pytest.mark.parametrize("p", BOOK["tuning"], ids=said)
def test_settings_are_chosen_by_what_may_be_rendered(p):
    assert not named(p["facts"]).pairs & HELD_OUT


def test_nothing_is_asked_that_settings_were_chosen_by():
    test, tuning = ({p[language] for p in BOOK[part] for language in LANGUAGES} for part in ("test", "tuning"))
    assert not test & tuning


def test_every_token_is_known_and_every_text_fits():
    bpe = tokenizer()
    known = {token for text in all_words() for token in bpe.encode(text)}
    texts = [p[language] for p in PROMPTS for language in LANGUAGES]
    texts += [entry[key] for entry in BOOK["negatives"] for key in ("prompt", "without")]
    texts += [fact for pair in BOOK["weights"] for fact in pair]
    strange = [text for text in texts if not known.issuperset(bpe.encode(text))]
    assert not strange
    recipe = OmegaConf.load(training.__path__[0] + "/recipe.yaml")
    assert max(len(bpe.encode(text)) for text in texts) <= recipe.clip.network.context_length - 2


def test_prompts_are_one_piece_and_negatives_two():
    assert all(len(parse(p[language])) == 1 for p in PROMPTS for language in LANGUAGES)
    for entry in BOOK["negatives"]:
        plain, shunned = parse(without(entry))
        assert (plain.text, shunned.text, shunned.weight) == (entry["prompt"], entry["without"], -1)
    assert [[p.weight for p in parse(text)] for text in sweep("day", "night")] == [
        [0.1, 0.9], [0.3, 0.7], [0.5, 0.5], [0.7, 0.3], [0.9, 0.1]]  # fmt: skip


@pytest.mark.parametrize("p", [*PROMPTS, *BOOK["prototype"]], ids=said)
def test_a_scene_of_the_facts_shows_them(p):
    for seed in range(5):
        shown = scene_of(p["facts"], seed)
        assert set(p["facts"]) <= shown.facts and all(map(reading(shown).holds, p["facts"]))
    assert (render(shown) == render(scene_of(p["facts"], seed))).all()


@pytest.mark.parametrize("facts", [["unicorn"], ["day", "night"], ["red moon"], ["snow", "desert"], ["tiny house"]])
def test_what_is_no_scene_is_refused(facts):
    with pytest.raises(ValueError, match="no fact of a scene, or the second"):
        named(facts)


def test_a_prompt_lacks_what_a_picture_of_another_need_not_show():
    assert lacks(["snow", "dawn", "clouds"], ["snow", "dawn"])
    assert not lacks(["snow", "dawn"], ["snow", "dawn", "clouds"])
    assert not lacks(["mountains", "house"], ["snowy mountains", "red house"])
    assert lacks(["red house"], ["blue house"])


# -------------------------------------------------------------------------------------------------------- figures


def test_each_fact_counts_in_its_row():
    facts = ("desert", "night", "clouds", "yellow house")
    rows = verdicts(facts, reading(scene_of(("desert", "night", "rain", "red house"), 0)))
    assert rows == {"ground": [True], "time": [True], "weather": [False], "object": [True], "colour": [False],
                    "shape": [], "all": [False]}  # fmt: skip


def test_the_colour_of_what_is_not_there_is_wrong():
    bare = Reading("desert", "night", "clear", frozenset(), {**dict.fromkeys(TINTED, "yellow")})
    rows = verdicts(("desert", "yellow house"), bare)
    assert rows["object"] == [False] and rows["colour"] == [False]


@pytest.mark.parametrize("shows, right", [
    (("red circle", "white background"), True), (("red circle", "black background"), False),
    (("red square", "white background"), False), (("blue circle", "white background"), False),
])  # fmt: skip
def test_a_plain_shape_is_right_only_as_a_whole(shows, right):
    rows = verdicts(("red circle", "white background"), reading(scene_of(shows, 0)))
    assert rows["shape"] == rows["all"] == [right] and not rows["object"] and not rows["colour"]


def test_shares_chance_and_ceiling_by_hand():
    ours = [seen("desert", "night"), seen("sea", "night"), seen("city", "dawn", shows=("city", "day"))]
    painted = tally([(s.facts, s.reading) for s in ours])
    assert painted["ground"] == (3, 3) and painted["time"] == (2, 3) and painted["all"] == (2, 3)
    chance = by_chance(ours)  # desert and sea share the night, nobody else shares anything
    assert chance["ground"] == (0, 6) and chance["time"] == (2, 6) and chance["all"] == (0, 6)

    class Faultless:
        def read(self, images):
            return [reading(scene_of(s.facts, 0)) for s in ours]

    rows = {row.name: row for row in attributes(Faultless(), ours, torch.zeros(3, 3, 128, 128))}
    assert set(rows) == {"ground", "time of day", "every attribute of the prompt right"}
    time = rows["time of day"]
    assert (time.value, time.chance, time.ceiling, time.counts) == (2 / 3, 1 / 3, 1, "2/3")


def test_how_often_better_than_chance_is_said_where_chance_has_any():
    ours = [seen("desert", shows=("desert", "day")), seen("desert", "night"), seen("sea", "night")]
    rows = {row.name.strip(): row for row in attributes(FromFacts(ours), ours, torch.zeros(3, 3, 128, 128))}
    assert rows["as many times as by chance"].value == pytest.approx(6)  # all right; 1 of 6 shuffled
    assert rows["as many times as by chance"].verdict == "no"


class FromFacts:
    """A judge that sees what was asked for."""

    def __init__(self, asked):
        self.asked = asked

    def read(self, images):
        return [s.reading for s in self.asked]


@pytest.mark.parametrize("value, at_most, verdict", [
    (0.96, False, "no"), (0.97, False, "must"), (0.99, False, "should"), (0.99, True, "must"), (0.97, True, "should"),
])  # fmt: skip
def test_bars_are_reached_or_not(value, at_most, verdict):
    must, should = (0.99, 0.97) if at_most else (0.97, 0.99)
    row = Row("time", value, must, should, "1/2", at_most=at_most)
    assert row.verdict == verdict and f"{value:.1%} | {verdict} | 1/2" in str(row)
    assert Row("nothing counted", float("nan"), must, should, at_most=at_most).verdict == "no"


@pytest.mark.parametrize("values, expected", [
    ((1, 2, 3, 4, 5), 1), ((5, 4, 3, 2, 1), -1), ((1, 2, 3, 5, 4), 0.9), ((-1, -1, 0, 1, 1), 9 / 90**0.5),
    ((-1, -1, -1, 1, 1), 7.5 / 75**0.5), ((2, 2, 2, 2, 2), 0),
])  # fmt: skip
def test_spearman(values, expected):
    assert spearman(range(5), values) == pytest.approx(expected)


def test_equal_values_share_their_ranks():
    assert ranks([3, 1, 3, 2]).tolist() == [3.5, 1, 3.5, 2]


def test_coarse_variation_sees_blobs_and_not_grain():
    flat, blobs = torch.full((1, 3, 128, 128), 0.5), torch.full((1, 3, 128, 128), 0.5)
    blobs[..., :64] = 1.0  # one edge among the 31 steps of the pooled picture across
    grain = flat.clone()
    grain[..., ::2], grain[..., 1::2] = 0.0, 1.0
    assert float(variation(flat)) == float(variation(grain)) == 0
    assert float(variation(blobs)) == pytest.approx(0.5 / 31)


# --------------------------------------------------------------------------------------- pictures and their judges


class Brightness:
    """A judge to whom bright is day, dark is night, and any red is a sun."""

    def __call__(self, images):
        bright = images.mean((1, 2, 3))
        return {"time": torch.stack([bright * 0, bright * 9, bright * 0, (1 - bright) * 9], 1)}

    def read(self, images):
        suns = (images[:, 0] - images[:, 1]).amax((1, 2)) > 0.5
        colours = dict.fromkeys(TINTED, "red")
        return [Reading("sea", "day", "clear", frozenset({"sun"} if sun else ()), colours) for sun in suns]


def picture(path, colour):
    Image.new("RGB", (128, 128), colour).save(path)
    return path


def test_weights_are_followed_or_not(tmp_path):
    paths = {}
    for k, (up, flat) in enumerate(zip(sweep("day", "night"), sweep("night", "day"), strict=True)):
        paths[up, 0] = picture(tmp_path / f"up{k}.png", (50 * k,) * 3)
        paths[flat, 0] = picture(tmp_path / f"flat{k}.png", (90, 90, 90))
    rows, found = weights(Brightness(), paths, [["day", "night"], ["night", "day"]], range(1))
    assert [row.value for row in rows] == [1, 1] and rows[0].counts == "of 2"
    for kind in ("log P", "P"):
        assert found["spearman"][kind] == {"day | night": pytest.approx(1), "night | day": 0}
        curve = found["difference"]["day | night"][kind]
        assert curve == sorted(curve)


def test_a_judge_that_is_sure_still_tells_more_from_less(tmp_path):
    """By P two pictures are but night and three but day; by its logarithm each is more day than the one before."""
    shades = (30, 110, 160, 200, 240)
    paths = {(text, 0): picture(tmp_path / f"{shade}.png", (shade,) * 3)
             for text, shade in zip(sweep("day", "night"), shades, strict=True)}  # fmt: skip

    class Sure(Brightness):
        def __call__(self, images):
            return {"time": 20 * super().__call__(images)["time"]}

    rows, found = weights(Sure(), paths, [["day", "night"]], range(1))
    assert [row.value for row in rows] == [1, 0]
    assert found["difference"]["day | night"]["P"] == [-1, -1, 1, 1, 1]


def test_a_negative_counts_only_where_there_was_something_to_remove(tmp_path):
    red, grey = picture(tmp_path / "red.png", "red"), picture(tmp_path / "grey.png", "grey")
    entry = {"prompt": "a beach", "without": "sun", "fact": "sun"}
    shown = {("a beach", 0): red, ("a beach", 1): red, ("a beach", 2): grey}
    after = {(without(entry), 0): grey, (without(entry), 1): red, (without(entry), 2): grey}
    (row,), _ = negatives(Brightness(), {**shown, **after}, [entry], range(3))
    assert row.value == 0.5 and row.counts == "1/2"


def test_an_ignorant_judge_measures_nothing():
    torch.manual_seed(0)
    with pytest.raises(SystemExit, match="train it longer"):
        worthy(Judge().eval(), count=8)


def test_the_judge_that_is_here_is_worthy():
    assert worthy(load_judge(), count=60)["all"] >= WORTHY


def test_a_judge_is_the_mean_of_its_last_steps_also_where_it_is_resumed(tmp_path):
    taught = train(tmp_path, count=64, epochs=3, processes=1).state_dict()  # one step each
    last = torch.load(tmp_path / "judge.ckpt", weights_only=True)["judge"]
    assert not torch.equal(taught["heads.ground.weight"], last["heads.ground.weight"])
    again = train(tmp_path, count=64, epochs=3, processes=1).state_dict()  # nothing is left to do
    assert all(torch.equal(taught[name], again[name]) for name in taught)


def test_a_judge_that_knows_is_worthy():
    class Knows:
        def __init__(self):
            self.left = [reading(scene(3_000_000 + k, held_out=True)) for k in range(8)]

        def read(self, images):
            return [self.left.pop(0) for _ in images]

    assert worthy(Knows(), count=8)["all"] == 1


def test_a_picture_is_painted_once(tmp_path):
    quick = Settings(steps=1, cutouts=2, size=(32, 32))
    jobs = plan([("desert", 0), ("desert", 1)], quick, EMBEDDED, tmp_path)
    (_, first), (_, second) = jobs.values()
    assert first != second
    assert plan([("desert", 0)], quick, EMBEDDED, tmp_path)["desert", 0][1] == first
    assert plan([("desert", 0)], quick.replace(steps=2), EMBEDDED, tmp_path)["desert", 0][1] != first
    assert "desert" in paint([jobs["desert", 0]], EMBEDDED)[0]
    painted = Image.open(first)
    assert painted.size == (32, 32) and float(painted.text["seconds"]) > 0
    before = first.stat().st_mtime_ns
    paint_all([jobs["desert", 0]], tmp_path / "no pair here", 1, 1)  # would fail if it painted
    assert first.stat().st_mtime_ns == before


def test_a_blind_reader_gets_four_prompts_of_which_one_is_right(tmp_path):
    ours = [Seen(p["en"], 0, tuple(p["facts"]), picture(tmp_path / f"{k}.png", (k, 0, 0)), None)
            for k, p in enumerate(BOOK["test"])]  # fmt: skip
    blind(tmp_path / "blind", ours)
    key = dict(line.split() for line in (tmp_path / "blind-key.txt").read_text("utf-8").splitlines())
    blocks = (tmp_path / "blind" / "choices.txt").read_text("utf-8").split(".png\n")
    assert len(key) == 40 == len(list((tmp_path / "blind").glob("*.png")))
    facts = {s.text: s.facts for s in ours}
    for block, (number, letter) in zip(blocks[1:], key.items(), strict=True):
        options = dict(line.strip().split("  ") for line in block.splitlines() if line.startswith("  "))
        right = options[letter]
        shown = np.asarray(Image.open(tmp_path / "blind" / f"{number}.png"))[0, 0, 0]
        assert ours[shown].text == right and len(set(options.values())) == 4
        assert all(lacks(facts[o], facts[right]) and lacks(facts[right], facts[o]) for o in options.values()
                   if o != right)  # fmt: skip
