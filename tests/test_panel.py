"""The panel and its player without a kernel: what is typed, moved and pressed reaches the run, and is shown."""

import asyncio
import io
import itertools
import re
import shutil
import string
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml  # which pytorch-lightning brings
from PIL import Image
from quick import until

import vqclip
from vqclip import drawings, hearing, strings
from vqclip.form import Form, uploaded
from vqclip.player import Meter, Player
from vqclip.pump import Pump
from vqclip.rows import TIP, PromptRows
from vqclip.run import NotFinite, readings
from vqclip.session import Session
from vqclip.settings import NAMES, Settings, SettingsError
from vqclip.studio import Studio

TINY = Settings(vqgan="vqgan", clip="vit", size=(16, 16), steps=6, cutouts=2, device="cpu")


@pytest.fixture
def home(tmp_path, files):
    shutil.copytree(files, tmp_path / "checkpoints")
    return tmp_path


# The player


def test_it_plays_to_the_end_and_further(home):
    player = Player(TINY, home)
    assert (player.state, player.session, player.alive) == ("ready", None, False)
    player.play()
    until(lambda: not player.alive)
    assert (player.state, player.frame.step, player.error) == ("done", 6, None)
    assert len(player.history.losses) == len(player.session.codes) == 7
    assert player.history.meters.keys() == {"desert", "snow"} and player.speed > 0
    player.steps = 9
    player.play()
    until(lambda: not player.alive)
    assert player.frame.step == 9 and Session.latest(home).path == player.session.path
    assert Player(session=Session.latest(home)).steps == 9  # another program knows, too


def test_played_on_while_the_end_is_put_on_disk_it_goes_on(home, monkeypatch):
    writing, written = threading.Event(), threading.Event()
    save = Session._save_picture

    def slowly(*arguments):
        writing.set()
        until(written.is_set)
        save(*arguments)

    monkeypatch.setattr(Session, "_save_picture", slowly)
    player = Player(TINY, home)
    player.play()
    until(writing.is_set)
    player.steps = 9
    pressed = threading.Thread(target=player.play)  # waits for the disk
    pressed.start()
    written.set()
    pressed.join()
    until(lambda: not player.alive)
    assert (player.state, player.frame.step) == ("done", 9)


def test_what_is_changed_before_the_start_is_how_it_starts(home):
    player = Player(TINY, home)
    player.change(prompts="a hot sea", lr=0.5)
    assert player.now.prompts == "a hot sea"
    player.play()
    until(lambda: not player.alive)
    assert player.session.settings.prompts == "a hot sea" and player.session.steering == {}


def test_pause_change_play_stop_and_another_program_goes_on(home):
    player = Player(TINY.replace(steps=10_000), home)
    player.play()
    until(lambda: player.frame is not None)
    player.pause()
    until(lambda: player.state == "paused")
    rest = player.frame.step
    player.change(cutouts=3)
    assert player.now.cutouts == 3 and player.frame.step == rest
    player.play()
    until(lambda: player.frame.step > rest + 1)
    player.stop()
    assert (player.state, player.alive) == ("stopped", False)
    assert player.session.steering == {rest + 1: {"cutouts": 3}}
    made = len(player.session.codes)

    again = Player(session=Session.latest(home))
    again.steps = made + 1
    again.play()
    until(lambda: not again.alive)
    assert again.state == "done" and len(again.session.codes) == made + 2
    assert len(again.history.losses) == made + 2 and again.now.cutouts == 3


def test_replayed_from_its_start_it_is_the_same_picture(home):
    player = Player(TINY.replace(steps=30), home)
    player.play()
    until(lambda: player.frame is not None)
    player.change(prompts="fog")
    until(lambda: not player.alive)
    made = player.session
    run = vqclip.generate(settings=made.settings, steering=made.steering, root=home / "checkpoints")
    twin = Session.create(home, run)
    list(twin.record(run))
    assert np.array_equal(twin.codes.read(), made.codes.read())


def test_an_error_is_kept_for_whoever_looks(home):
    player = Player(TINY.replace(vqgan="nowhere.ckpt"), home)
    player.play()
    until(lambda: not player.alive)
    assert player.state == "failed" and "nowhere.ckpt" in str(player.error) and player.session is None


def test_what_cannot_be_changes_nothing(home):
    player = Player(TINY, home)
    for changes in ({"lr": 0}, {"prompts": "a:0"}, {"seed": 3}):
        with pytest.raises(ValueError):
            player.change(**changes)
    with pytest.raises(SettingsError):
        player.steps = 0
    assert player.now == TINY


def test_a_trend_needs_some_steps_and_has_a_sign():
    meter = Meter()
    for value in (0.1, 0.2, 0.3):
        meter.add(value)
    assert meter.trend == 0 and (meter.now, meter.best) == (0.3, 0.3)
    meter.add(0.2)
    assert meter.trend == pytest.approx(0.1) and meter.best == 0.3


# Stopped while it loads


@pytest.fixture
def loading(monkeypatch):
    """Loading takes until `.until()` is true; `.times` says how often something was loaded."""
    loads = SimpleNamespace(times=0, until=lambda: False)

    def generate(*args, **kwargs):
        loads.times += 1
        until(lambda: loads.until())
        return vqclip.generate(*args, **kwargs)

    monkeypatch.setattr("vqclip.player.generate", generate)
    return loads


def press_the_cells_stop_button(studio, when):
    """Run the cell, and stop it as soon as `when()` is true."""

    async def interrupted():
        cell = asyncio.get_running_loop().create_task(studio.run())
        while not when():
            await asyncio.sleep(0)
        cell.cancel()
        await cell

    asyncio.run(interrupted())


def test_stop_while_it_loads_is_said_at_once_and_honoured(studio, loading, home):
    panel, player = studio.panel, studio.player
    player.play()
    until(lambda: loading.times == 1)
    panel.paint()
    assert ">Loading the painter and the judge<" in said(studio) and panel.buttons["play"].disabled
    panel.buttons["stop"].click()  # returns while it still loads
    assert ">Stopping as soon as painter and judge are loaded<" in said(studio)
    assert panel.buttons["stop"].disabled and not panel.buttons["play"].disabled and player.state == "stopping"
    loading.until = lambda: True
    until(lambda: not player.alive)
    panel.paint()
    assert ">Stopped. All is kept; run the cell again to go on<" in said(studio)
    assert player.session is None and not list((home / "sessions").iterdir())  # nothing was painted: nothing is left
    asyncio.run(studio.run())
    assert loading.times == 1 and len(studio.session.codes) == 7  # what was loaded is still there


def test_a_stop_while_it_loads_can_be_taken_back(studio, loading):
    player = studio.player
    player.play()
    until(lambda: loading.times == 1)
    studio.panel.buttons["stop"].click()
    studio.panel.buttons["play"].click()  # does not wait either
    assert player.state == "loading" and ">Loading" in said(studio)
    loading.until = lambda: True
    until(lambda: not player.alive)
    assert player.state == "done" and len(player.session.codes) == 7


def test_the_cells_stop_button_while_it_loads_is_said_before_it_waits(studio, loading):
    loading.until = lambda: ">Stopping as soon as painter and judge are loaded<" in said(studio)
    press_the_cells_stop_button(studio, lambda: loading.times > 0)
    assert studio.player.state == "stopped" and studio.session is None


def test_what_is_loaded_may_catch_warnings_and_they_are_heard_again(studio, loading, monkeypatch):
    slow = vqclip.player.generate

    def generate(*arguments, **settings):
        with warnings.catch_warnings():
            return slow(*arguments, **settings)

    monkeypatch.setattr("vqclip.player.generate", generate)
    loading.until = lambda: ">Stopping as soon as painter and judge are loaded<" in said(studio)
    before = warnings.showwarning
    press_the_cells_stop_button(studio, lambda: loading.times > 0)
    assert warnings.showwarning is before


# The studio


@pytest.fixture
def studio(home):
    return Studio(home, TINY)


def said(studio):
    panel = studio.panel
    return panel.status.value + panel.progress.value + panel.note.value + panel.tokens.value


def test_run_paints_until_it_is_done_and_says_so(studio, home):
    asyncio.run(studio.run())
    assert ">Done." in said(studio) and "step 6 of 6" in said(studio) and str(studio.session.path) in said(studio)
    assert "vit reads 77 tokens a prompt: desert 3 · snow 3" in said(studio)
    shown = Image.open(io.BytesIO(studio.panel.picture.value))
    assert shown.format == "JPEG" and shown.size == (16, 16)
    assert studio.panel.rows.rows[0].meter.value.count('role="meter"') == 1
    assert "<polyline" in studio.panel.losses.value


def test_tokens_are_counted_once_for_the_same_words(studio, monkeypatch):
    counted = []
    monkeypatch.setattr("vqclip.panel.readings", lambda run: counted.append(1) or readings(run))
    asyncio.run(studio.run())
    for _ in range(9):
        studio.panel.paint()
    assert len(counted) == 1
    studio.panel.rows.rows[1].text.value = "a deep red sea"
    studio.player.steps = 8
    asyncio.run(studio.run())
    assert len(counted) == 2 and "desert 3 · a deep red sea 6" in said(studio)


def test_an_error_reaches_the_cell_and_the_panel(studio):
    studio.player.steps = 3
    asyncio.run(studio.run())
    studio.player.run.losses["odd"] = 1.0, lambda image: image.mean() * float("nan")
    studio.player.steps = 6
    with pytest.raises(NotFinite):
        asyncio.run(studio.run())
    assert ">It stopped: at step 4 the odd became nan" in said(studio)
    del studio.player.run.losses["odd"]
    asyncio.run(studio.run())
    assert ">Done." in said(studio) and len(studio.session.codes) == 7


def test_pictures_are_made_by_the_thread_that_steps_and_the_last_is_shown(studio, monkeypatch):
    makers, pil = set(), vqclip.run.Frame.pil.fget
    noted = property(lambda frame: makers.add(threading.get_ident()) or pil(frame))
    monkeypatch.setattr(vqclip.run.Frame, "pil", noted)
    asyncio.run(studio.run())
    assert makers and threading.get_ident() not in makers
    shown = Image.open(io.BytesIO(studio.panel.picture.value))
    last = io.BytesIO()
    pil(studio.player.frame).save(last, "JPEG", quality=85)
    assert np.array_equal(np.asarray(shown), np.asarray(Image.open(last)))


def test_a_picture_larger_than_the_panel_shows_stays_as_large_as_it_is(studio, monkeypatch):
    monkeypatch.setattr(vqclip.watch, "LARGEST", 8)
    asyncio.run(studio.run())
    assert Image.open(io.BytesIO(studio.panel.picture.value)).size == (8, 8)
    assert studio.player.picture.size == (16, 16)


def test_the_cells_stop_button_is_a_stop(studio):
    studio.player.steps = 10_000
    press_the_cells_stop_button(studio, lambda: studio.player.frame is not None)
    assert ">Stopped." in said(studio) and not studio.player.alive and (studio.session.path / "final.png").exists()


def test_sliders_and_steps_reach_the_player(studio):
    panel = studio.panel
    panel.controls["lr"].value = 0.5
    panel.controls["init_weight"].value = 2
    panel.controls["cutouts"].value = 5
    panel.steps.value = 8
    panel.rows.rows[1].weight.value = 50
    now = studio.player.now
    assert (now.lr, now.init_weight, now.cutouts, now.steps) == (pytest.approx(0.5), 2, 5, 8)
    assert now.prompts == "desert:50 | snow:50" and panel.rows.shares.value == "desert 50 % · snow 50 %"
    panel.rows.rows[0].weight.value = panel.rows.rows[1].weight.value = 0
    assert "All weights are 0" in said(studio) and studio.player.now.prompts == "desert:0 | snow:50"


def test_paint_says_which_cell_to_run_or_begins_by_itself(home):
    studio = Studio(home, TINY)
    studio.panel.buttons["play"].click()
    assert "Run the next cell to paint" in said(studio)

    async def page():
        studio = Studio(home, TINY, background=True)
        studio.panel.buttons["play"].click()
        while studio.player.state != "done" or ">Done." not in said(studio):
            await asyncio.sleep(0)
        return studio

    assert len(asyncio.run(page()).session.codes) == 7


def test_buttons_can_be_pressed_only_where_they_mean_something(studio):
    buttons = studio.panel.buttons
    assert [buttons[name].disabled for name in ("play", "pause", "stop")] == [False, True, True]
    asyncio.run(studio.run())
    assert [buttons[name].disabled for name in ("play", "pause", "stop")] == [False, True, True]


def test_a_notebook_opened_later_goes_on(studio, home):
    asyncio.run(studio.run())
    later = Studio.open(home, go_on=True, language="ru")
    assert later.panel.picture.value == studio.panel.picture.value  # the picture as it was left
    later.player.steps = 8
    asyncio.run(later.run())
    assert later.session.path == studio.session.path and len(later.session.codes) == 9
    assert ">Готово." in said(later)
    with pytest.raises(SettingsError, match="run the step that writes them first"):
        Studio.open(home)


# Rows


@pytest.fixture
def rows():
    """Rows for `desert:50 | snow:25`, with .sent, all that they said, and .errors."""
    sent, errors = [], []
    rows = PromptRows("desert:50 | snow:25", strings.Words(), sent.append, errors.append)
    rows.sent, rows.errors = sent, errors
    return rows


def test_a_row_says_what_it_shows(rows):
    assert [(row.text.value, row.weight.value) for row in rows.rows] == [("desert", 50), ("snow", 25)]
    rows.rows[0].text.value = "a hot desert"
    rows.rows[1].weight.value = -25
    assert rows.sent == ["a hot desert:50 | snow:25", "a hot desert:50 | snow:-25"]
    assert rows.shares.value == "a hot desert 67 % · − snow 33 %"


def test_rows_come_and_go(rows):
    rows.add.click()
    assert rows.sent == [] and len(rows.box.children) == 3  # an empty one says nothing yet
    rows.rows[2].text.value = "fog"
    gone = rows.rows[0]
    gone.remove.click()
    assert rows.sent[-1] == "snow:25 | fog:50" and len(rows.box.children) == 2
    assert gone.weight.comm is None and rows.rows[0].weight.comm is not None  # nothing of it is left on the page
    rows.rows[0].remove.click()
    assert rows.rows[0].remove.disabled  # the last one stays


def test_bars_and_weights_may_be_typed(rows):
    rows.rows[1].text.value = "snow:1 | fog:-0.5"
    assert [(row.text.value, row.weight.value) for row in rows.rows] == [("desert", 50), ("snow", 1), ("fog", -0.5)]
    assert vqclip.parse(rows.sent[-1])[2].stop == -0.9
    rows.rows[0].text.value = "a dune:0.5"
    assert (rows.rows[0].text.value, rows.rows[0].weight.value) == ("a dune", 0.5)
    rows.rows[0].text.value = "a dune:700"
    assert rows.rows[0].text.value == "a dune" and rows.rows[0].weight.value == 700 <= rows.rows[0].weight.max


@pytest.mark.parametrize("words", ['"the clock at 12:30"', "3:2 ratio", r'"a | b"', "Star Wars: A New Hope"])
def test_words_with_colons_and_bars_stay_words(rows, words):
    rows.rows[0].text.value = words
    rows.rows[0].weight.value = 12.5
    assert vqclip.parse(rows.sent[-1])[0].text == words.strip('"') and vqclip.parse(rows.sent[-1])[0].weight == 12.5
    again = PromptRows(rows.sent[-1], strings.Words(), rows.sent.append, rows.errors.append)
    again.rows[0].weight.value = 13
    assert vqclip.parse(rows.sent[-1])[0].text == words.strip('"')


def test_a_stop_that_was_typed_stays_one_that_was_not_follows_the_weight():
    sent = []
    rows = PromptRows("fog:1:0.4 | rain:-1", strings.Words(), sent.append, None)
    rows.rows[0].weight.value = 2
    rows.rows[1].weight.value = 1
    fog, rain = vqclip.parse(sent[-1])
    assert (fog.stop, rain.stop) == (0.4, -float("inf"))
    rows.rows[1].text.value = "mist:1:0.3"
    assert [prompt.stop for prompt in vqclip.parse(sent[-1])] == [0.4, 0.3]


def test_what_is_wrong_is_handed_over(rows):
    rows.rows[0].weight.value = 0
    rows.rows[1].weight.value = 0
    assert rows.sent == ["desert:0 | snow:25"] and "All weights are 0" in str(rows.errors[0])


def test_a_meter_belongs_to_its_words_not_to_its_place(rows):
    def meters():
        return [re.findall(r'valuenow="([\d.]+)"', row.meter.value) for row in rows.rows]

    measured = {}
    for label, cosine in (("desert", 0.1), ("snow", 0.2), ("desert #2", 0.1)):
        measured[label] = Meter()
        measured[label].add(cosine)
    rows.rows[1].text.value = "snow:25 | desert:5"
    rows.paint(measured, measured)
    assert meters() == [["0.1000"], ["0.2000"], ["0.1000"]]
    rows.rows[0].remove.click()
    rows.paint(measured, measured)  # of the picture before
    assert meters() == [["0.2000"], ["0.1000"]]
    rows.rows[1].text.value = "fog"
    assert meters() == [["0.2000"], []]  # also where nothing is painted, as in a pause
    rows.add.click()
    rows.paint(measured, measured)
    assert meters() == [["0.2000"], [], []]


def test_image_prompts_share_in_one_whole():
    sent = []
    rows = PromptRows("desert:50 | snow:25", strings.Words(), sent.append, None, pictures="<dune>.png:-25")
    assert rows.shares.value == "desert 50 % · snow 25 % · − &lt;dune&gt;.png 25 %"
    rows.rows[1].weight.value = 100
    assert rows.shares.value == "desert 29 % · snow 57 % · − &lt;dune&gt;.png 14 %"
    rows.rows[0].text.value = rows.rows[1].text.value = ""
    assert sent[-1] == "" and rows.shares.value == "− &lt;dune&gt;.png 100 %"


def test_a_run_of_image_prompts_has_the_shares_that_the_panel_says(home):
    Image.new("RGB", (16, 16), (200, 90, 0)).save(home / "dune.png")
    studio = Studio(home, TINY.replace(image_prompts=f"{home / 'dune.png'}:25", steps=2))
    asyncio.run(studio.run())
    weights = [prompt.weight for prompt in studio.player.run.judges()[0][1].prompts]
    assert weights == [0.5, 0.25, 0.25]
    assert re.findall(r"(\d+) %", studio.panel.rows.shares.value) == [f"{100 * weight:.0f}" for weight in weights]


def test_what_is_pointed_at_explains_itself(studio):
    """In ipywidgets 7 and 8 a slider's tooltip is its label's, so it needs one; an Image can have none."""
    panel, words = studio.panel, strings.Words()
    for row in panel.rows.rows:
        assert row.weight.description == "weight" and getattr(row.weight, TIP) == words("weight_tip")
    for name, control in (*panel.controls.items(), ("steps", panel.steps)):
        assert control.description and getattr(control, TIP).startswith(f"{name}: ")
    assert not getattr(panel.picture, "tooltip", None)
    picture, told = panel.widget.children[0].children[2].children
    assert picture is panel.picture and f'title="{words("picture_tip")}"' in told.value and "aria-label" in told.value
    assert "Enter makes it count" in panel.widget.children[1].children[0].value


def test_the_keyboard_sees_where_it_is():
    """Sliders' handles are noUi's in ipywidgets 8 and jQuery's in 7."""
    rule = re.search(r":is\(([^{}]*)\):focus-visible\s*{\s*outline: 2px solid", drawings.style_sheet().value, re.DOTALL)
    reached = {one.strip() for one in rule[1].rpartition("(")[2].split(",")}
    assert {".noUi-handle", ".ui-slider-handle", "input", "button", "select", "[contenteditable]"} <= reached


# Drawings and words


def test_a_meter_has_its_figures_and_no_markup_of_others():
    drawn = drawings.meter(0.31, 0.4, 0.01, 0.5, '<b> "x"')
    assert 'aria-valuenow="0.3100"' in drawn and "width:62.0%" in drawn and "left:80.0%" in drawn and "▲" in drawn
    assert "<b> " not in drawn and drawn.count('"') % 2 == 0
    assert drawings.full_scale([0.31, 0.1]) == 0.4 and drawings.full_scale([]) == 0.3


def test_a_curve_has_no_more_points_than_a_screen():
    drawn = drawings.curve([1 / (n + 1) for n in range(100_000)], [50_000])
    assert len(re.findall(r"[\d.]+,[\d.]+", drawn)) <= 2 * drawings.POINTS and 'x1="50.00"' in drawn
    assert "<polyline" not in drawings.curve([1.0]) + drawings.curve([]) + drawings.curve([1.0, float("nan")])
    assert drawings.curve([1.0, float("nan"), 2.0, 3.0]).count(",") == 3


def test_every_language_has_every_text_with_the_same_gaps():
    def gaps(text):
        return {name for _, name, _, _ in string.Formatter().parse(text) if name}

    assert strings.languages() == ("en", "ru", "de", "es")
    for key, texts in strings.table().items():
        assert tuple(texts) == strings.languages(), key
        assert len({frozenset(gaps(text)) for text in texts.values()}) == 1, key
        assert all(isinstance(text, str) and text.strip() for text in texts.values()), key


def test_the_texts_are_plain_yaml_for_every_reader():
    """OmegaConf 2.4 reads more than PyYAML does, which is what Colab's 2.3 stands on."""
    for path in sorted(Path(vqclip.__file__).parent.rglob("*.yaml")):
        assert yaml.safe_load(path.read_text("utf-8")), path


def test_every_text_is_used_and_every_used_one_is_there():
    source = "".join(path.read_text("utf-8") for path in Path(vqclip.__file__).parent.glob("*.py"))
    spoken = set(re.findall(r"""words\("(\w+)\"""", source)) | set(re.findall(r'"(\w+)"', source))
    assert not {key for key in strings.table() if key not in spoken | NAMES.keys() and not key.endswith("_tip")}
    assert set(re.findall(r"""words\("(\w+)\"""", source)) <= strings.table().keys()
    with pytest.raises(SettingsError, match="language='xx' .* choose en, ru, de, es"):
        strings.Words("xx")


# The form


def test_a_form_has_all_settings_and_keeps_what_is_chosen(tmp_path):
    form = Form(tmp_path / "settings.yaml")
    assert set(form.fields) == set(Settings.__dataclass_fields__) - {"device"}
    form.fields["size"].value = "64x48"
    form.fields["optimizer"].value = "adam"
    form.fields["steps"].value = 77
    assert Settings.load(tmp_path / "settings.yaml") == Settings(size=(64, 48), optimizer="adam", steps=77)
    form.fields["size"].value = "wide"
    assert "is not a size as 512x384" in form.said.value
    assert Settings.load(tmp_path / "settings.yaml").size == (64, 48)
    assert Form(tmp_path / "settings.yaml").fields["size"].value == "64x48"


def test_a_form_says_beside_each_field_what_it_is(tmp_path):
    form = Form(tmp_path / "settings.yaml")
    lines = {line.children[0].description: line.children[1].value for line in form.widget.children[2:-1]}
    assert list(lines) == [form.words(name) for name in form.fields]
    assert "<code><b>steps</b></code> how many steps to take" in lines["Steps"]
    assert "<code>embedded</code>" in lines["Painter"]
    assert getattr(form.fields["vqgan"], TIP) == "vqgan: who paints: embedded, or a checkpoint's name or path"


@pytest.mark.parametrize("language", strings.languages())
def test_a_form_speaks_the_panels_languages(tmp_path, language):
    form, words = Form(tmp_path / "settings.yaml", language), strings.Words(language)
    for name, field in form.fields.items():
        assert field.description == words(name) != name and len(field.description) <= 21, name
    said = "".join(line.children[1].value for line in form.widget.children[1:-1])
    assert all(f"<b>{name}</b>" in said for name in form.fields)
    form.fields["steps"].value = 9
    assert str(tmp_path) in form.said.value and words("kept", path="").strip() in form.said.value


def test_panel_and_form_have_one_style_sheet_and_no_other_looks(tmp_path, studio):
    form = Form(tmp_path / "settings.yaml")
    sheets = [one.value for one in (form.widget.children[0], studio.panel.widget.children[0].children[0])]
    assert sheets[0] == sheets[1] and sheets[0].startswith("<style>")
    form.fields["size"].value = "wide"
    shown = [form.said, *(widget for line in form.widget.children[1:-1] for widget in (line, *line.children))]
    assert not [one for one in shown if "style=" in str(getattr(one, "value", "")) or one.layout.flex]
    used = {name for one in (form.widget, *shown) for name in one._dom_classes}
    assert used and all(f".{name}" in sheets[0] for name in used)


def test_a_picture_dropped_on_it_fills_the_form(studio, tmp_path):
    asyncio.run(studio.run())
    picture = (studio.session.path / "final.png").read_bytes()
    form = Form(tmp_path / "settings.yaml")
    form.upload = SimpleNamespace(value=({"name": "x.png", "content": memoryview(picture)},))
    form._uploaded(None)
    assert Settings.load(tmp_path / "settings.yaml") == studio.session.settings
    assert form.fields["size"].value == "16x16"
    assert uploaded({"x.png": {"metadata": {}, "content": b"7"}}) == [("x.png", b"7")]  # ipywidgets 7


# The pump


class OldKernel:
    """As much of an ipykernel 6 as the pump touches: messages wait in a queue while a cell runs."""

    def __init__(self):
        self.msg_queue, self._parent_ident, self.handled = asyncio.Queue(), {"shell": b"me"}, []
        self.session = SimpleNamespace(
            feed_identities=lambda args, copy: ([], [b"", SimpleNamespace(bytes=args)]),
            unpack=lambda kind: {"msg_type": kind},
        )
        numbers = itertools.count()
        self.send = lambda kind: self.msg_queue.put_nowait((next(numbers), self.dispatch, (kind,)))

    async def dispatch(self, kind):
        self.handled.append(kind)

    def get_parent(self, channel):
        return "the cell"

    def set_parent(self, *parent):
        self.parent = parent


def test_only_widgets_pass_a_running_cell():
    kernel = OldKernel()

    async def cell():
        async with Pump(kernel) as pump:
            for kind in ("comm_msg", "execute_request", "comm_open", "kernel_info_request", "comm_close"):
                kernel.send(kind)
            await pump(0)

    asyncio.run(cell())
    assert kernel.handled == ["comm_msg", "comm_open", "comm_close"]
    assert kernel.parent == (b"me", "the cell", "shell")
    left = [kernel.msg_queue.get_nowait()[2][0] for _ in range(kernel.msg_queue.qsize())]
    assert left == ["execute_request", "kernel_info_request"]


def test_a_kernel_that_is_not_known_is_left_alone(studio, monkeypatch):
    kernel = SimpleNamespace(dispatch_shell=lambda message: None, shell_handlers={"comm_msg": 7})
    monkeypatch.setattr("vqclip.pump._kernel", lambda: kernel)
    asyncio.run(studio.run())
    assert ">Done." in said(studio) and kernel.shell_handlers == {"comm_msg": 7}


def test_a_kernel_that_was_busy_has_not_waited(monkeypatch):
    """Loading may keep the kernel from listening for minutes: that is not the page's fault."""
    now = itertools.count(0, 60)
    monkeypatch.setattr(hearing.time, "monotonic", lambda: next(now))
    ear = hearing.Ear()
    assert all(ear.listen() for _ in range(int(hearing.PATIENCE / hearing.BREATH) - 1))
    assert not ear.listen()


def test_a_press_is_a_sign_of_life(studio, monkeypatch):
    monkeypatch.setattr(hearing, "PATIENCE", 0)
    studio.panel.listen()
    assert "hears nothing" in said(studio)
    for move in (studio.panel.buttons["pause"].click, lambda: setattr(studio.panel.controls["lr"], "value", 0.5),
                 lambda: setattr(studio.panel.steps, "value", 9)):  # fmt: skip
        studio.panel.ear.begin()
        assert not studio.panel.ear.listen()
        move()
        assert studio.panel.ear.listen()


def test_what_a_move_is_told_is_not_wiped_out_by_its_being_heard(studio, monkeypatch):
    monkeypatch.setattr(hearing, "PATIENCE", 0)
    studio.panel.listen()
    assert "hears nothing" in said(studio)
    for row in studio.panel.rows.rows:
        row.weight.value = 0
    studio.panel.listen()
    assert "All weights are 0" in said(studio)


def test_a_panel_that_is_not_heard_says_so_until_it_is(studio, monkeypatch):
    monkeypatch.setattr(hearing, "PATIENCE", 0)
    asyncio.run(studio.run())
    assert "the panel hears nothing while the cell runs" in said(studio)
    ear = studio.panel.ear
    assert getattr(ear.widget, hearing.PLAYING) is True  # the page was asked to count ...
    ear.widget.value = 1  # ... and did
    studio.panel.listen()
    assert "hears nothing" not in said(studio) and getattr(ear.widget, hearing.PLAYING) is False
