"""Prompts: what artists type, what it means, and that it survives being written down and read again."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqclip.prompts import SAFE_STOP, Prompt, PromptError, describe, format_prompts, normalise, parse

INF = math.inf

TYPED = [
    ("desert", [("desert", 1, -INF)]),
    ("  desert  ", [("desert", 1, -INF)]),
    ("desert:50 | snow:25", [("desert", 50, -INF), ("snow", 25, -INF)]),
    ("desert : 50\n|\tsnow : 25 : .7", [("desert", 50, -INF), ("snow", 25, 0.7)]),
    ("desert|snow", [("desert", 1, -INF), ("snow", 1, -INF)]),
    ("| desert | | snow |", [("desert", 1, -INF), ("snow", 1, -INF)]),
    ("desert:+1e2", [("desert", 100, -INF)]),
    ("desert:5.:.5", [("desert", 5, 0.5)]),
    ("desert:0 | snow", [("desert", 0, -INF), ("snow", 1, -INF)]),
    # away from
    ("a castle | fog:-0.5", [("a castle", 1, -INF), ("fog", -0.5, SAFE_STOP)]),
    ("castle | fog:−1", [("castle", 1, -INF), ("fog", -1, SAFE_STOP)]),
    ("castle | fog:-1:-inf", [("castle", 1, -INF), ("fog", -1, -INF)]),
    ("castle | fog:-1:-0.6", [("castle", 1, -INF), ("fog", -1, -0.6)]),
    # colons that are text
    ("Star Wars: A New Hope", [("Star Wars: A New Hope", 1, -INF)]),
    ("Star Wars: A New Hope:2", [("Star Wars: A New Hope", 2, -INF)]),
    ("3:2 ratio", [("3:2 ratio", 1, -INF)]),
    ("desert:", [("desert:", 1, -INF)]),
    ("desert:nan", [("desert:nan", 1, -INF)]),
    ("desert:1_000", [("desert:1_000", 1, -INF)]),
    ("desert:5:x", [("desert:5:x", 1, -INF)]),
    ("a:1:2:3", [("a:1", 2, 3)]),
    ("http://h:8080/a.png:0.5", [("http://h:8080/a.png", 0.5, -INF)]),
    ("http://h:8080", [("http://h:8080", 1, -INF)]),
    ("http://h:8080:2", [("http://h:8080", 2, -INF)]),
    ("http://h:8080:-2:-0.8 | x", [("http://h:8080", -2, -0.8), ("x", 1, -INF)]),
    ("http://h:0.5", [("http://h", 0.5, -INF)]),
    ("https://me:12@[::1]:80", [("https://me:12@[::1]:80", 1, -INF)]),
    ("https://h.org/a.png", [("https://h.org/a.png", 1, -INF)]),
    (r"C:\x.png", [(r"C:\x.png", 1, -INF)]),
    (r"C:\x.png:.5", [(r"C:\x.png", 0.5, -INF)]),
    (r"\\server\share\x.png | snow", [(r"\\server\share\x.png", 1, -INF), ("snow", 1, -INF)]),
    # no rule is right for these: the echo of `describe` shows it, quotes and backslashes change it
    ("the clock at 12:30", [("the clock at 12", 30, -INF)]),
    ('"the clock at 12:30"', [("the clock at 12:30", 1, -INF)]),
    (r"the clock at 12\:30", [("the clock at 12:30", 1, -INF)]),
    (r"the clock at 12\:30:2", [("the clock at 12:30", 2, -INF)]),
    (r"black \| white | grey", [("black | white", 1, -INF), ("grey", 1, -INF)]),
    # quotes
    ('"16:9":2', [("16:9", 2, -INF)]),
    ('"black | white" : -2 : -.5 | "grey"', [("black | white", -2, -0.5), ("grey", 1, -INF)]),
    (r'"say \"hi\""', [('say "hi"', 1, -INF)]),
    (r'"C:\dir\\":2', [("C:\\dir\\", 2, -INF)]),
    (r'"a\:b"', [(r"a\:b", 1, -INF)]),
    ('"Star Wars": A New Hope', [('"Star Wars": A New Hope', 1, -INF)]),
    ('a "quiet" sea:3', [('a "quiet" sea', 3, -INF)]),
    ('"never closed:3', [('"never closed', 3, -INF)]),
    ('12" vinyl | 7" vinyl', [('12" vinyl', 1, -INF), ('7" vinyl', 1, -INF)]),
    # any language
    (
        "砂漠:2 | снег | صحراء:٥٠ | 🏜️:3",
        [("砂漠", 2, -INF), ("снег", 1, -INF), ("صحراء", 50, -INF), ("🏜️", 3, -INF)],
    ),
]


@pytest.mark.parametrize(("typed", "expected"), TYPED, ids=[typed for typed, _ in TYPED])
def test_what_is_typed_is_what_is_meant(typed, expected):
    assert parse(typed) == tuple(Prompt(*row) for row in expected)


def test_the_safe_stop_is_where_unrelated_words_lie():
    assert SAFE_STOP == -0.9 and math.cos(math.sqrt(2 * -SAFE_STOP)) == pytest.approx(0.227, abs=1e-3)


def test_several_texts_and_prompts_may_be_mixed():
    away = Prompt("fog", -1)  # a Prompt is taken as it is: no safe stop is slipped in
    assert parse(["desert:2 | snow", away]) == (Prompt("desert", 2), Prompt("snow"), away)
    assert parse(away) == (away,)


def test_five_thousand_words_are_one_prompt():
    words = " ".join(["word"] * 5000)
    assert parse(f"{words}:2") == (Prompt(words, 2),)


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("", "prompt is empty"),
        (" \n", "prompt is empty"),
        (" | || ", "prompt is empty"),
        ([], "prompt is empty"),
        ("desert | :50", r"Prompt 2 \(:50\): there are no words"),
        ('desert | "  ":2', r'Prompt 2 \("  ":2\)|Prompt 2 \(" ":2\): there are no words'),
        ("desert:inf", r"Prompt 1 \(desert:inf\): the weight inf"),
        ("snow | desert:1e999", r"Prompt 2 \(desert:1e999\): the weight inf"),
        ("desert:-Infinity:3", "the weight -inf"),
        ("desert:1:inf", r"Prompt 1 \(desert:1:inf\): the stop inf"),
        ("desert:0 | snow:-0", "All weights are 0"),
        (["desert", 5], "not 5"),
        (f"{'long ' * 40}:inf", r"Prompt 1 \(long long .{40,60}…\)"),
    ],
)
def test_errors_name_the_piece_and_the_remedy(typed, says):
    with pytest.raises(PromptError, match=says):
        parse(typed)


@pytest.mark.parametrize(
    "values", [("", 1), ("a", math.nan), ("a", "much"), ("a", 10**400), ("a", 1, math.nan), (None,)]
)
def test_a_prompt_cannot_hold_nonsense(values):
    with pytest.raises(PromptError):
        Prompt(*values)


def test_shares_are_of_the_sum_of_magnitudes():
    assert [p.weight for p in normalise(parse("desert:50 | snow:25"))] == pytest.approx([2 / 3, 1 / 3])
    assert [p.weight for p in normalise(parse("castle:3 | fog:-1"))] == pytest.approx([0.75, -0.25])
    assert [p.weight for p in normalise(parse("a:1e308 | b:1e308"))] == [0.5, 0.5]
    assert normalise(parse("a:2:.5"))[0].stop == 0.5
    with pytest.raises(PromptError, match="All weights are 0"):
        normalise([Prompt("a", 0)])


def test_describe():
    assert describe(parse("desert:50 | snow:25")) == "desert 67 % · snow 33 %"
    assert describe(parse("castle:4 | fog:-1")) == "castle 80 % · − fog 20 %"
    assert describe(parse("a:1000 | b:3 | c:0")) == "a 100 % · b 0.3 % · c 0 %"
    assert describe(parse("two\n lines")) == "two lines 100 %"
    assert len(describe(parse("word " * 5000))) < 80


@pytest.mark.parametrize(
    ("prompts", "written"),
    [
        ([Prompt("desert", 50), Prompt("snow", 25)], "desert:50 | snow:25"),
        ([Prompt("desert"), Prompt("fog", -0.5, SAFE_STOP)], "desert | fog:-0.5"),
        ([Prompt("fog", -1)], "fog:-1:-inf"),
        ([Prompt("a", 1, 0.5)], "a:1:0.5"),
        ([Prompt("12:30")], '"12:30"'),
        ([Prompt("12:30", 2)], '"12:30":2'),
        ([Prompt("Star Wars: A New Hope", 2)], "Star Wars: A New Hope:2"),
        ([Prompt(r"C:\x.png")], r"C:\x.png"),
        ([Prompt("black | white")], '"black | white"'),
        ([Prompt('"a'), Prompt('b"')], r'"\"a" | b"'),
    ],
)
def test_written_as_an_artist_would(prompts, written):
    assert format_prompts(prompts) == written
    assert parse(written) == tuple(prompts)


# Texts made of the characters the grammar cares about, so that the search finds the corners quickly.
tricky = st.lists(
    st.sampled_from(list(':|"\\ \n-.0159einfaé雪/') + ["http://h", ":8", '":', "\\:", "\\|", '\\"'])
)
texts = st.one_of(st.text(), tricky.map("".join))
weights = st.floats(allow_nan=False, allow_infinity=False)
stops = st.one_of(st.just(-INF), st.just(SAFE_STOP), weights)
prompts = st.lists(st.builds(Prompt, texts.filter(str.strip), weights, stops), min_size=1, max_size=5).filter(
    lambda ps: any(p.weight for p in ps)
)


@given(prompts)
def test_round_trip(given_prompts):
    assert parse(format_prompts(given_prompts)) == tuple(given_prompts)


@given(texts)
def test_any_text_parses_or_says_why_not(text):
    try:
        parsed = parse(text)
    except PromptError as error:
        assert str(error).endswith(".")
        return
    assert parse(parsed) == parsed
    assert parse(format_prompts(parsed)) == parsed
    assert describe(parsed)


@given(prompts)
def test_normalising_keeps_signs_and_ratios_and_is_idempotent(given_prompts):
    once = normalise(given_prompts)
    assert sum(abs(p.weight) for p in once) == pytest.approx(1)
    assert all(n.weight * p.weight >= 0 for n, p in zip(once, given_prompts, strict=True))
    assert [p.weight for p in normalise(once)] == pytest.approx([p.weight for p in once])
