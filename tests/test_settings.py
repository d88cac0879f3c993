"""Settings: what is chosen comes back from YAML and command lines as it was, and what cannot be is said at once."""

import math
import random
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from vqclip.prompts import PromptError
from vqclip.settings import LARGEST, NAMES, PRESETS, Settings, SettingsError, table

VALUES = {
    "size": st.tuples(st.integers(16, LARGEST), st.integers(16, LARGEST)),
    **{
        name: st.sampled_from(spec.metadata["choices"])
        for name, spec in NAMES.items()
        if spec.metadata["choices"]
    },
    **{
        name: (st.integers if isinstance(spec.default, int) else st.floats)(spec.metadata["low"], spec.metadata["high"])
        for name, spec in NAMES.items()
        if isinstance(spec.default, (int, float))
    },
}
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
AWKWARD = [
    "${x}", "${", "$", "${oc.env:HOME}", r"\${x}", r"\\${", "$${", "???", "a: b", "- a", "# no", "yes", "null", "~",
    "1984", "1e3", "12:30", "0x1F", "'", '"a: b"', "a\nb", "a\r\nb", "\ttab", " space ", "%", "&a *b", "!!str", "{a}",
    "[a", "a\\", "пустыня", "🏜️", "\u2028", "\x85", r"\${NEL}\\\${NEL}" "\\\x85",
    "\ufeff", "\x07", "a=b", "---", "...", "@", "`", ">", "?", "砂漠:2 | snow:-0.5:-0.9",
]  # fmt: skip


def quoted(text):
    """As a prompt that `prompts.parse` takes whatever is in it."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def said(caught):
    words = str(caught.value)
    assert "\n" not in words and len(words) < 600
    return words


# YAML


def assert_comes_back(settings, path):
    settings.save(path)
    assert Settings.load(path) == settings == Settings.from_dict(settings.to_dict())


@given(text=TEXT | st.text('${}x\\: "', min_size=1), changes=st.fixed_dictionaries({}, optional=VALUES))
@effort(deadline=None)
def test_any_settings_come_back_from_yaml(text, changes, tmp_path_factory):
    settings = Settings(prompts=quoted("x" + text), vqgan=text, init_image=text, **changes)
    assert_comes_back(settings, tmp_path_factory.getbasetemp() / "settings.yaml")


@pytest.mark.parametrize("text", AWKWARD, ids=ascii)
def test_awkward_words_come_back_from_yaml(text, tmp_path):
    assert_comes_back(Settings(prompts=quoted("x" + text), clip=text), tmp_path / "s.yaml")
    assert_comes_back(Settings(prompts=f"x{text}x"), tmp_path / "s.yaml")


def test_the_file_is_readable_and_short(tmp_path):
    Settings(prompts="пустыня | ${x}", size=(512, 384)).save(tmp_path / "deep" / "settings.yaml")
    lines = (tmp_path / "deep" / "settings.yaml").read_text("utf-8").splitlines()
    assert lines[0] == r"prompts: пустыня | \${x}" and "size: 512x384" in lines and len(lines) == len(NAMES)


def test_settings_left_out_have_their_defaults(tmp_path):
    (tmp_path / "s.yaml").write_text("steps: 7\nsize: [64, 32]\nprompts: 1984\ninit_image:\n")
    assert Settings.load(tmp_path / "s.yaml") == Settings(steps=7, size=(64, 32), prompts="1984")
    (tmp_path / "s.yaml").write_text("prompts: cost in ${money} and ${oc.env:HOME}\n")
    assert Settings.load(tmp_path / "s.yaml").prompts == "cost in ${money} and ${oc.env:HOME}"
    (tmp_path / "s.yaml").write_text("")
    assert Settings.load(tmp_path / "s.yaml") == Settings()


@pytest.mark.parametrize(
    "content, words",
    [
        (b"steps: 7\n  size: [", "s.yaml is not YAML"),
        (b"<!DOCTYPE html>\n<html><body>Not: found</body>", "s.yaml is not YAML|cannot be read as settings"),
        (b"\xff\xfe\x00", "cannot be read as settings|is not YAML"),
        (b"- a\n- b\n", "s.yaml holds no settings: each line should be `name: value`"),
        (b"desert", "there is no setting 'desert'; there are prompts, "),
        (b"42", "cannot be read as settings"),
        (b"steps: 7\nsteps: 8\n", "s.yaml is not YAML"),
        (b"1: x\nfoo: y\n", "there is no setting '1'; there are prompts"),
        (b"self: x\n", "there is no setting 'self'"),
        (b"stepps: 3\n", "there is no setting 'stepps'"),
        (b"steps: ${lr}\n", "steps='.*lr.*' is not a whole number: choose 1 to 1000000"),
        (b"steps:\n", "steps is empty, which is not a whole number"),
        (b"prompts:\n", "The prompt is empty"),
        (b"prompts: yes\n", "prompts=True is not a text"),
        (b"prompts: [a, b]\n", "prompts=.* is not a text"),
        (b"prompts: '${'\n", "prompts|cannot be read as settings"),
        (b"!!python/object/apply:os.system ['echo no']", "is not YAML"),
    ],
    ids=lambda value: value.decode("latin-1")[:20] if isinstance(value, bytes) else "",
)
def test_broken_files(tmp_path, content, words):
    (tmp_path / "s.yaml").write_bytes(content)
    with pytest.raises((SettingsError, PromptError), match=words) as caught:
        Settings.load(tmp_path / "s.yaml")
    said(caught)


def test_files_that_are_not_there_or_no_files(tmp_path):
    with pytest.raises(SettingsError, match="there are no settings in .*gone.yaml: run the step that writes"):
        Settings.load(tmp_path / "gone.yaml")
    with pytest.raises(SettingsError, match="cannot be read as settings .*[Dd]irectory"):
        Settings.load(tmp_path)


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, full_disk):
    Settings(steps=7).save(tmp_path / "s.yaml")
    with full_disk(10), pytest.raises(SettingsError, match="cannot be written .*: choose another folder") as caught:
        Settings(steps=8).save(tmp_path / "s.yaml")
    said(caught)
    assert Settings.load(tmp_path / "s.yaml").steps == 7 and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(SettingsError, match="cannot be written"):
        Settings().save(tmp_path / "s.yaml" / "below")


# Values


@pytest.mark.parametrize(
    "value, size",
    [
        ("512x384", (512, 384)), ("512X384", (512, 384)), ("512×384", (512, 384)), (" 64 x 32 ", (64, 32)),
        ("64", (64, 64)), (64, (64, 64)), ([64, 32], (64, 32)), ((64, "32"), (64, 32)), (64.0, (64, 64)),
        (16, (16, 16)), ((16, LARGEST), (16, LARGEST)),
    ],
)  # fmt: skip
def test_sizes(value, size):
    assert Settings(size=value).size == size


BAD = [
    ("size", "is out of range: choose 16 to 4096",
     [0, (0, 64), (64, -1), -3, "-3x5", 10_000_000, "10000000", (64, LARGEST + 1), 15]),
    ("size", "is not a size as 512x384: choose 16 to 4096",
     ["", "x", "axb", "1x2x3", (1, 2, 3), (), None, 1.5, (64.5, 64), math.nan, math.inf, True, b"64", {}]),
    ("steps", "is out of range: choose 1 to 1000000", [0, -1, "0", 1_000_001, 10**30]),
    ("steps", "is not a whole number: choose 1 to 1000000",
     ["", "ten", "1.5", 1.5, math.nan, math.inf, -math.inf, None, True, [3], "1e3", "9" * 5000]),
    ("seed", "is out of range", [-1, 2**63]),
    ("cutouts", "is out of range: choose 1 to 4096", [0, -5, 4097]),
    ("cutouts", "is not a whole number", ["many", 2.5]),
    ("lr", "is out of range: choose 1e-06 to 100", [0, -0.1, 101, "nan", math.nan, math.inf, "inf", "-inf"]),
    ("lr", "is not a number", ["fast", "", None, [0.1], True, {}]),
    ("ema", "is out of range: choose 0 to 0.9999", [-0.1, 1, 0.99999]),
    ("noise", "is out of range: choose -1 to 10", [-1.5, 11]),
    ("chunk", "is out of range: choose 0 to 4096", [-1, 5000]),
    ("start", "is out of range: choose soft, random, mean", ["zufall", "", None, "Random"]),
    ("optimizer", "is out of range: choose adam, momentum", ["sgd"]),
    ("augment", "choose none, mse, abulafia, nerdyrodent, updated", ["all"]),
    ("precision", "choose auto, float32, bfloat16, float16", ["float8", 16]),
    ("prompts", "is not a text", [True, False, ["a"], {}, b"a", ..., "a\0b", "half \ud800 a character"]),
    ("vqgan", "is not a text", [["a"], 1j]),
]  # fmt: skip


@pytest.mark.parametrize(
    "name, value, words", [(name, value, words) for name, words, values in BAD for value in values],
    ids=lambda value: ascii(value)[:24],
)  # fmt: skip
def test_values_that_cannot_be(name, value, words):
    with pytest.raises(SettingsError, match=words) as caught:
        Settings(**{name: value})
    assert str(caught.value).startswith(name)
    said(caught)


@pytest.mark.parametrize("prompts", ["", " ", "|", " | ", "a:0 | b:0", "a:inf", ":3"])
def test_prompts_are_read_before_anything_is_loaded(prompts):
    with pytest.raises(PromptError) as caught:
        Settings(prompts=prompts)
    said(caught)
    with pytest.raises(PromptError):
        Settings(losses="tv:0")
    assert Settings(prompts="", image_prompts="a.png").prompts == ""


def test_paths_and_numbers_are_taken_for_text(tmp_path):
    assert Settings(init_image=tmp_path / "a.png").init_image == str(tmp_path / "a.png")
    assert Settings(prompts=1984).prompts == "1984" and Settings(init_image=None).init_image == ""


def test_settings_do_not_change_and_can_be_told_apart():
    settings = Settings()
    with pytest.raises(AttributeError):
        settings.steps = 3
    assert settings.replace(steps=3) != settings == Settings()
    assert len({settings, Settings(), settings.replace(seed=1)}) == 2


# Command line


def test_key_value_pairs():
    got = Settings().override(["steps=300", "size=512x384", "lr=.05", "prompts=a: b=c | d", " seed =7", "device="])
    assert got == Settings(steps=300, size=(512, 384), lr=0.05, prompts="a: b=c | d", seed=7, device="")
    assert Settings(steps=5).override(iter([])) == Settings(steps=5)
    assert Settings().override(["steps=3", "steps=4"]).steps == 4


@given(changes=st.fixed_dictionaries({}, optional=VALUES))
@effort(deadline=None, max_examples=50)
def test_any_settings_can_be_typed(changes):
    settings = Settings(**changes)
    typed = [f"{name}={value}" for name, value in settings.to_dict().items()]
    random.Random(0).shuffle(typed)
    assert Settings(prompts="other").override(typed) == settings


@pytest.mark.parametrize(
    "pair, words",
    [
        ("steps", "'steps' is no setting: write it as name=value, such as steps=300"),
        ("", "'' is no setting"),
        ("=3", "there is no setting ''"),
        ("foo=1", "there is no setting 'foo'; there are prompts, image_prompts"),
        ("Steps=1", "there is no setting 'Steps'"),
        ("steps=", "steps='' is not a whole number"),
        ("steps=abc", "steps='abc' is not a whole number: choose 1 to 1000000"),
        ("lr=1,5", "lr='1,5' is not a number: choose 1e-06 to 100"),
        ("size=big", "size='big' is not a size as 512x384: choose 16 to 4096"),
    ],
)
def test_pairs_that_cannot_be(pair, words):
    with pytest.raises(SettingsError, match=words) as caught:
        Settings().override([pair])
    said(caught)


# Presets and the table


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name):
    before = Settings(prompts="snow", seed=9, size=(64, 32))
    after = before.preset(name)
    assert after == before.replace(**PRESETS[name]) and after.steps == {"draft": 40, "good": 200}.get(name, 500)
    assert after.prompts == "snow" and after.size == (64, 32)


def test_an_unknown_preset():
    with pytest.raises(SettingsError, match="there is no preset 'best'; there are draft, good, fine, classic"):
        Settings().preset("best")


def test_the_table_tells_every_setting_its_default_and_range():
    rows = {name: (default, allowed, help) for name, default, allowed, help in table()}
    assert list(rows) == [spec.name for spec in fields(Settings)]
    assert rows["size"][:2] == ("128x128", "16 to 4096") and rows["steps"][:2] == ("80", "1 to 1000000")
    assert rows["lr"][:2] == ("0.12", "1e-06 to 100") and rows["noise"][:2] == ("-1.0", "-1 to 10")
    assert rows["start"][1] == "soft, random, mean" and rows["prompts"][1] == "" and rows["chunk"][1] == "0 to 4096"
    assert all(help for _, _, help in rows.values())
    for name, (default, allowed, _) in rows.items():
        assert getattr(Settings().override([f"{name}={default}"]), name) == NAMES[name].default
        if NAMES[name].metadata["low"] > -math.inf:  # both ends are allowed, and what is said of them is true
            for end, at in zip(allowed.split(" to "), ("low", "high"), strict=True):
                assert float(end) == NAMES[name].metadata[at]
                Settings(**{name: NAMES[name].metadata[at]})


def test_a_recipe_is_of_its_picture_not_of_what_was_planned():
    settings = Settings(steps=50, churn=0.3)
    assert Settings.of_recipe({"settings": settings.to_dict()}) == settings
    assert Settings.of_recipe({"settings": settings.to_dict(), "steps_made": 51}) == settings
    assert Settings.of_recipe({"settings": settings.to_dict(), "steps_made": 31}).steps == 30
    before = {name: value for name, value in settings.to_dict().items() if name != "churn"}
    assert Settings.of_recipe({"settings": before}).churn == 0


def test_a_notebooks_form_leaves_steps_and_glimpses_where_it_says_0():
    fine = Settings().preset("fine")
    assert fine.filled(64, 48, 0, 0, seed=7) == fine.replace(size=(64, 48), seed=7)
    assert fine.filled(64, 48, 9, 5) == fine.replace(size=(64, 48), steps=9, cutouts=5)
