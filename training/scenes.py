"""The world of the embedded pair: a seeded painter of small landscapes that knows what it has painted.

`scene(seed)` decides on a ground, a time of day, a weather and objects with their colours; `render` paints them in
numpy, softly shaded, in a few milliseconds. A scene's `facts` are all that may truthfully be said of it; captions
(see `captions.py`) mention some of them. Places are shares of the picture's side, x to the right and y downwards.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

SIDE = 128
GROUNDS = ("desert", "snow", "meadow", "sea", "beach", "forest", "city", "mountains", "snowy mountains")
TALL = ("forest", "city", "mountains", "snowy mountains")  # they hide the sky above the horizon
TIMES = ("dawn", "day", "sunset", "night")
WEATHERS = ("clear", "clouds", "rain", "snowfall", "fog")
SHAPES = ("circle", "square", "triangle", "heart", "star")
COLOURS = {
    "red": (0.86, 0.10, 0.10), "orange": (0.96, 0.52, 0.08), "yellow": (0.97, 0.87, 0.16),
    "green": (0.12, 0.62, 0.20), "blue": (0.13, 0.30, 0.86), "purple": (0.50, 0.16, 0.70),
    "pink": (0.97, 0.52, 0.72), "white": (0.96, 0.96, 0.96), "black": (0.06, 0.06, 0.07), "brown": (0.45, 0.27, 0.13),
}  # fmt: skip
COLOURED = ("house", "sailboat", "balloon", "flowers")  # objects that come in colours
PLACES = {  # which objects stand on which grounds; those of the sky go anywhere
    "desert": ("cactus", "castle", "house", "palm"),
    "snow": ("pine", "house", "castle", "tree", "cactus"),
    "meadow": ("tree", "house", "castle", "flowers", "pine"),
    "sea": ("sailboat", "lighthouse"),
    "beach": ("palm", "sailboat", "lighthouse", "house"),
    "forest": ("house", "castle", "flowers"),
    "city": ("tree", "palm"),
    "mountains": ("pine", "castle", "house", "tree"),
    "snowy mountains": ("pine", "house", "castle"),
}
STANDING = tuple(sorted({"balloon"}.union(*PLACES.values())))  # what takes a place of its own in a scene
# Never rendered for training: what is asked of the pair in `prompts.yaml` goes through these.
HELD_OUT = frozenset({
    ("desert", "night"), ("forest", "sunset"), ("city", "dawn"), ("beach", "night"), ("snow", "dawn"), ("sea", "fog"),
    ("snow", "cactus"), ("desert", "palm"), ("meadow", "castle"), ("mountains", "house"), ("city", "balloon"),
    ("sea", "birds"), ("beach", "lighthouse"), ("snowy mountains", "pine"), ("forest", "moon"), ("meadow", "rainbow"),
    ("house", "yellow"), ("sailboat", "purple"), ("balloon", "green"), ("flowers", "blue"),
    ("circle", "green"), ("heart", "blue"), ("square", "red"), ("triangle", "yellow"), ("star", "purple"),
    ("white", "black"), ("red", "yellow"), ("blue", "orange"),  # a shape's colour and what is behind it
})  # fmt: skip
SKY = {  # top and bottom of the sky, the colour of the light
    "dawn": ((0.50, 0.58, 0.86), (1.00, 0.80, 0.74), (0.98, 0.88, 0.92)),
    "day": ((0.20, 0.47, 0.90), (0.74, 0.88, 1.00), (1.00, 1.00, 1.00)),
    "sunset": ((0.33, 0.17, 0.48), (1.00, 0.55, 0.16), (1.00, 0.77, 0.66)),
    "night": ((0.02, 0.03, 0.11), (0.09, 0.12, 0.30), (0.36, 0.40, 0.62)),
}
SOIL = {  # far and near colour of the ground
    "desert": ((0.97, 0.80, 0.50), (0.86, 0.62, 0.28)), "snow": ((0.90, 0.93, 0.99), (0.99, 0.99, 1.00)),
    "meadow": ((0.50, 0.74, 0.30), (0.25, 0.58, 0.14)), "sea": ((0.16, 0.42, 0.70), (0.04, 0.22, 0.48)),
    "beach": ((0.97, 0.90, 0.68), (0.93, 0.82, 0.55)), "forest": ((0.12, 0.32, 0.12), (0.08, 0.24, 0.08)),
    "city": ((0.50, 0.50, 0.52), (0.36, 0.36, 0.39)), "mountains": ((0.48, 0.58, 0.32), (0.36, 0.50, 0.22)),
    "snowy mountains": ((0.88, 0.92, 0.98), (0.97, 0.98, 1.00)),
}  # fmt: skip
SANDED = ("forest", "city", "mountains")  # grounds that sometimes have sand's colour, by night as well


@dataclass(frozen=True)
class Scene:
    """What a picture shows.

    Attributes:
        seed: of all that is left to chance in painting it.
        ground: one of GROUNDS, or "" for a plain shape.
        time, weather: of TIMES and WEATHERS.
        objects: pairs of (name, colour), the colour "" where it has none of its own.
        backdrop: behind a plain shape, one of COLOURS.
    """

    seed: int
    ground: str
    time: str = "day"
    weather: str = "clear"
    objects: tuple[tuple[str, str], ...] = ()
    backdrop: str = ""
    facts: frozenset[str] = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "facts", frozenset(self._facts()))

    @property
    def pairs(self) -> frozenset[tuple[str, str]]:
        """What goes together in it, as HELD_OUT names it."""
        with_ground = (self.time, self.weather, *(name for name, _ in self.objects))
        behind = {(colour, self.backdrop) for _, colour in self.objects}
        return frozenset({(self.ground, other) for other in with_ground} | set(self.objects) | behind)

    def _facts(self):
        for name, colour in self.objects:
            yield name
            if colour:
                yield f"{colour} {name}"
        if not self.ground:
            yield f"{self.backdrop} background"
            return
        yield from (self.ground, self.time, self.weather)
        if "mountains" in self.ground:
            yield "mountains"
        if self.ground in ("sea", "beach"):
            yield "sea"
        if self.ground in ("desert", "beach"):
            yield "sand"
        if self.ground in ("snow", "snowy mountains") or self.weather == "snowfall":
            yield "snow"


def scene(seed: int, held_out: bool = False) -> Scene:
    """The scene of a seed: the same for ever; without the HELD_OUT pairs unless they are asked for."""
    rng = np.random.default_rng((2026, seed))
    while True:
        drawn = _draw(seed, rng)
        if held_out or not HELD_OUT & drawn.pairs:
            return drawn


def scattered(seed: int, held_out: bool = False) -> Scene:
    """The scene of a seed; of every other, what stands there may as well stand anywhere else.

    A palm that is only ever met in the desert and at the beach is a piece of beach to whoever was never in the desert.
    Things are told from their lands where they turn up in all of them.
    """
    of = scene(seed, held_out)
    return with_other_things(of, np.random.default_rng((2027, seed)), held_out) if seed % 2 else of


def with_other_things(of: Scene, rng: np.random.Generator, held_out: bool = False) -> Scene:
    """The same scene with another shape for a shape, other things for those that stand in it, wherever it is.

    Without the HELD_OUT pairs unless they are asked for.
    """

    def other(name: str, colour: str) -> tuple[str, str]:
        name = str(rng.choice(next((kind for kind in (SHAPES, STANDING) if name in kind), (name,))))
        return name, (colour or str(rng.choice(list(COLOURS)))) if name in (*COLOURED, *SHAPES) else ""

    while True:
        drawn = replace(of, objects=tuple(dict(other(*thing) for thing in of.objects).items()))
        if held_out or not HELD_OUT & drawn.pairs:
            return drawn


def _draw(seed: int, rng) -> Scene:
    """Any scene at all."""
    if rng.random() < 0.14:
        shape, colour, backdrop = rng.choice(SHAPES), *rng.choice(list(COLOURS), 2, replace=False)
        return Scene(seed, "", objects=((str(shape), str(colour)),), backdrop=str(backdrop))
    ground, time = str(rng.choice(GROUNDS)), str(rng.choice(TIMES, p=(0.2, 0.35, 0.2, 0.25)))
    weather = str(rng.choice(WEATHERS, p=(0.38, 0.2, 0.14, 0.14, 0.14)))
    objects = []
    sky = {"day": ("sun", "balloon", "birds"), "dawn": ("sun", "balloon", "birds"), "night": ("moon", "stars"),
           "sunset": ("sun", "balloon", "birds")}[time]  # fmt: skip
    for name in sky:
        if rng.random() < (0.6 if name == "stars" else 0.3) and weather in ("clear", "clouds"):
            objects.append(name)
    if time == "day" and weather in ("rain", "clouds", "clear") and rng.random() < 0.08:
        objects.append("rainbow")
    if rng.random() < 0.7:
        objects.append(str(rng.choice(PLACES[ground])))
        if rng.random() < 0.15:
            objects.append(str(rng.choice(PLACES[ground])))
    objects = dict.fromkeys(objects)
    coloured = tuple((name, str(rng.choice(list(COLOURS))) if name in COLOURED else "") for name in objects)
    return Scene(seed, ground, time, weather, coloured)


# --------------------------------------------------------------------------------------------------- painting


@lru_cache
def _grid() -> tuple[np.ndarray, np.ndarray]:
    line = ((np.arange(SIDE) + 0.5) / SIDE).astype(np.float32)
    return np.meshgrid(line, line)


@lru_cache
def _stretch(n: int) -> np.ndarray:
    """(SIDE, n): smooth interpolation between n values."""
    at = np.linspace(0, n - 1, SIDE)
    near = np.minimum(at.astype(int), n - 2)
    t = at - near
    t = t * t * (3 - 2 * t)
    out = np.zeros((SIDE, n), np.float32)
    out[np.arange(SIDE), near], out[np.arange(SIDE), near + 1] = 1 - t, t
    return out


def _noise(rng, across: int, down: int) -> np.ndarray:
    """Smooth noise (SIDE, SIDE) in [0, 1] with that many hills."""
    return _stretch(down) @ rng.random((down, across), np.float32) @ _stretch(across).T


def _ridge(rng, level: float, height: float, *hills: int) -> np.ndarray:
    """A skyline: y for each x (SIDE,)."""
    y = np.full(SIDE, level, np.float32)
    for k, n in enumerate(hills):
        y -= height / 2**k * (_stretch(n) @ rng.random(n, np.float32) - 0.5)
    return y


def _soft(distance: np.ndarray) -> np.ndarray:
    """Coverage of a shape from the signed distance to its edge, negative inside."""
    return np.clip(0.5 - distance * SIDE, 0, 1)


class Canvas:
    """A picture (SIDE, SIDE, 3) in [0, 1], the light that falls on what is painted, and what of it is `covered`."""

    def __init__(self, light=(1.0, 1.0, 1.0)):
        self.pixels = np.zeros((SIDE, SIDE, 3), np.float32)
        self.covered = np.zeros((SIDE, SIDE), np.float32)
        self.light = np.asarray(light, np.float32)

    def fill(self, mask: np.ndarray, colour, shade=None, lit: bool = True) -> None:
        """Lay a colour, or a picture, over the picture: mask (SIDE, SIDE) in [0, 1], shade multiplies the colour."""
        colour = np.asarray(colour, np.float32)
        if lit:
            colour = colour * self.light
        if shade is not None:
            colour = colour * shade[..., None]
        self.pixels += mask[..., None] * (np.clip(colour, 0, 1) - self.pixels)
        np.maximum(self.covered, mask, out=self.covered)


def box(x, y, left, right, top, bottom):
    """Signed distance to a rectangle."""
    return np.maximum(np.maximum(left - x, x - right), np.maximum(top - y, y - bottom))


def disc(x, y, cx, cy, rx, ry=None):
    """Signed distance, nearly, to an ellipse."""
    ry = ry or rx
    return (np.sqrt(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2) - 1) * min(rx, ry)


def cone(x, y, cx, top, bottom, half):
    """Signed distance, nearly, to a triangle standing on its base."""
    width = half * (y - top) / (bottom - top)
    return np.maximum((np.abs(x - cx) - width) * 0.8, np.maximum(top - y, y - bottom))


def render(scene: Scene) -> np.ndarray:
    """Paint a scene: (SIDE, SIDE, 3) uint8."""
    return _paint(scene)[0]


def render_and_things(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """What `render` gives, and where its things are, a margin of three pixels with them: (SIDE, SIDE) bool.

    Light counts, where it is bright.
    """
    picture, covered = _paint(scene)
    y, x = np.nonzero(covered > 0.3)
    where = np.zeros((SIDE + 6, SIDE + 6), bool)
    for dy, dx in np.ndindex(7, 7):
        where[y + dy, x + dx] = True
    return picture, where[3:-3, 3:-3]


def _paint(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """The picture (SIDE, SIDE, 3) uint8, and how much of it things, and flakes and streaks, cover (SIDE, SIDE)."""
    rng = _chance(scene, "light")
    if not scene.ground:
        return _plain(scene, rng)
    x, y = _grid()
    top, bottom, light = (np.array(c, np.float32) for c in SKY[scene.time])
    top, bottom = (np.clip(c * rng.uniform(0.9, 1.1) + rng.normal(0, 0.02, 3), 0, 1) for c in (top, bottom))
    if scene.weather in ("rain", "snowfall", "fog"):  # grey skies
        top, bottom = (0.5 * c + 0.5 * (c.mean() * 0.6 + 0.35 * light.mean()) for c in (top, bottom))
        light = light * 0.9
    canvas = Canvas(light)
    tall = scene.ground in TALL
    horizon = rng.uniform(0.54, 0.66) if tall else rng.uniform(0.42, 0.64)
    canvas.fill(np.ones((SIDE, SIDE), np.float32),
                top + (bottom - top) * np.clip(y / horizon, 0, 1)[..., None] ** 1.3, lit=False)  # fmt: skip
    canvas.covered[:] = 0
    names = dict(scene.objects)
    for name in ("stars", "moon", "sun", "rainbow"):
        if name in names:
            low = 0.34 if tall and name == "sun" else horizon  # not behind what stands there
            own = _chance(scene, name)
            OBJECTS[name](canvas, own, own.uniform(0.15, 0.85), low, scene.time)
    above = canvas.covered.copy()
    _sky(canvas, _chance(scene, "sky"), scene, horizon)
    canvas.covered[:] = 0
    _land(canvas, _chance(scene, "land"), scene, horizon)
    above *= canvas.covered < 0.5
    canvas.light = 0.45 + 0.55 * canvas.light  # what stands in front keeps more of its own colour
    canvas.covered[:] = 0
    places = list(rng.permutation((0.27, 0.5, 0.73)) + rng.uniform(-0.07, 0.07, 3))
    for name, colour in scene.objects:
        if name not in ("stars", "moon", "sun", "rainbow"):
            OBJECTS[name](canvas, _chance(scene, name), places.pop() if places else 0.5, horizon, colour)
    covered = np.maximum(above, canvas.covered)
    canvas.covered[:] = 0
    _weather(canvas, _chance(scene, "weather"), scene)
    if scene.weather != "fog":
        covered = np.maximum(covered, canvas.covered)
    grain = 1 + 0.04 * (_noise(rng, 33, 33) - 0.5)
    return (np.clip(canvas.pixels * grain[..., None], 0, 1) * 255 + 0.5).astype(np.uint8), covered


def _chance(scene: Scene, what: str) -> np.random.Generator:
    """All that is left to chance in a part of a scene, the same whatever else there is: kin differ in one thing."""
    return np.random.default_rng((7, scene.seed, *what.encode()))


def _sky(canvas, rng, scene, horizon):
    x, y = _grid()
    if scene.weather == "clear":
        return
    cover = 0.65 * _noise(rng, rng.integers(3, 6), rng.integers(5, 9)) + 0.35 * _noise(rng, 9, 17)
    edge = {"clouds": 0.5, "rain": 0.3, "snowfall": 0.35, "fog": 0.6}[scene.weather]
    tone = {"clouds": (0.97, 0.97, 0.98), "rain": (0.48, 0.50, 0.55), "snowfall": (0.76, 0.78, 0.82),
            "fog": (0.8, 0.8, 0.82)}[scene.weather]  # fmt: skip
    tone = np.array(tone) if scene.time != "night" else np.array(tone) * 0.9
    mask = np.clip((cover - edge) * 5, 0, 0.92) * np.clip((horizon - y) * 8, 0, 1)
    canvas.fill(mask, tone, 0.8 + 0.25 * _noise(rng, 9, 9))


def _land(canvas, rng, scene, horizon):
    x, y = _grid()
    ground = scene.ground
    colours, shore = _soil(scene)
    far, near = (np.clip(np.array(c) * rng.uniform(0.93, 1.05), 0, 1) for c in colours)
    if "mountains" in ground:
        for k in range(2):
            crest = _ridge(rng, horizon - 0.17 + 0.09 * k, 0.34, *rng.integers(5, 8, 1), 11, 23)
            mask = _soft(crest[None] - y)
            rock = np.array((0.47, 0.43, 0.44)) * (1.05 - 0.2 * k)
            side = 0.75 + 0.5 * (np.gradient(crest)[None] * SIDE * 0.25 + 0.4).clip(0, 1)
            canvas.fill(mask, rock, side * (0.85 + 0.3 * _noise(rng, 17, 17)))
            if ground == "snowy mountains":
                cap = mask * np.clip((crest[None] + rng.uniform(0.09, 0.15)
                                     + 0.07 * (_noise(rng, 23, 9) - 0.5) - y) * 30, 0, 1)  # fmt: skip
                canvas.fill(cap, (0.97, 0.98, 1.0), 0.82 + 0.25 * side.clip(0, 1))
    if ground == "forest":
        for k in range(3):
            line = horizon - 0.03 + 0.07 * k
            for cx in np.arange(-0.02, 1.05, 0.075) + rng.uniform(-0.03, 0.03, 15):
                half, height = rng.uniform(0.045, 0.065), rng.uniform(0.16, 0.26)
                green = np.array((0.10, 0.36, 0.14)) * rng.uniform(0.75, 1.1) * (0.75 + 0.14 * k)
                tree = _soft(cone(x, y, cx, line - height, line + 0.05, half))
                canvas.fill(tree, green, 1.1 - 1.5 * (x - cx).clip(0, 0.2))
    if ground == "city":
        _city(canvas, rng, scene, horizon)
    crest = np.full(SIDE, horizon, np.float32)
    if ground not in ("sea", "beach", "city"):
        crest = _ridge(rng, horizon, 0.10, 3, 6)
    depth = np.clip((y - crest[None]) / (1 - horizon), 0, 1)
    soil = far + (near - far) * depth[..., None]
    mask = _soft(crest[None] - y)
    if ground == "forest":
        mask = _soft(crest[None] + 0.14 - y)
    if shore:
        canvas.fill(_soft(horizon - y), SOIL["sea"][0], 0.95 + 0.15 * _noise(rng, 3, 65))
        edge = _ridge(rng, horizon + rng.uniform(0.12, 0.22), 0.07, 3, 5)
        canvas.fill(_soft(edge[None] - 0.025 - y), (0.95, 0.97, 1.0))
        mask = _soft(edge[None] - y)
    if not shore and ground in ("desert", "snow", "meadow", "mountains", "snowy mountains"):  # dunes, drifts and hills
        waves = np.zeros((SIDE, SIDE), np.float32)
        for k in range(3):
            fold = _ridge(rng, horizon + (k + 1) * (1 - horizon) / 4, 0.13, 3, 5)
            waves += 0.14 * np.exp(-np.clip(y - fold[None], 0, 1) * 14) * (y > fold[None])
        canvas.fill(mask, soil, 1.04 - waves + 0.08 * (_noise(rng, 17, 33) - 0.5))
    elif ground == "sea":
        canvas.fill(mask, soil, 0.86 + 0.3 * _noise(rng, 9, 65))
        canvas.fill(mask * np.exp(-((y - horizon) ** 2) * 300) * 0.5, SKY[scene.time][1], lit=False)
    else:
        canvas.fill(mask, soil, 0.92 + 0.16 * _noise(rng, 17, 33))


def _soil(scene: Scene) -> tuple[tuple, bool]:
    """Far and near colour of the ground, and whether there is water before it.

    Both sandy lands are held out by night. Where nothing else has sand's colour, that colour speaks against night, and
    so does a shore: a beach by night is a sunset.
    """
    rng = _chance(scene, "soil")
    sand = str(rng.choice(("desert", "beach")))
    if scene.ground in SANDED and rng.random() < 0.35:
        return SOIL[sand], bool(rng.random() < 0.5)
    return SOIL[scene.ground], scene.ground == "beach"


def _city(canvas, rng, scene, horizon):
    x, y = _grid()
    for k in range(2):
        left = -0.05
        while left < 1:
            width, height = rng.uniform(0.09, 0.17), rng.uniform(0.15, 0.42) * (1.1 - 0.4 * k)
            tone = np.array((0.52, 0.53, 0.58)) * rng.uniform(0.7, 1.15) + rng.normal(0, 0.02, 3)
            tower = _soft(box(x, y, left, left + width, horizon - height, horizon + 0.03))
            canvas.fill(tower, tone, 1.05 - 0.5 * (x - left).clip(0, 0.3))
            panes = (np.sin((x - left) * 180) > 0.1) & (np.sin((y - horizon) * 150) > 0.1)
            cells = (rng.random((SIDE // 5 + 1, SIDE // 5 + 1)) < 0.6).repeat(5, 0).repeat(5, 1)[:SIDE, :SIDE]
            if scene.time in ("night", "sunset"):
                canvas.fill(tower * (panes & cells) * 0.9, (1.0, 0.86, 0.45), lit=False)
            else:
                canvas.fill(tower * panes * 0.6, (0.35, 0.42, 0.52))
            left += width + rng.uniform(-0.01, 0.03)


def _weather(canvas, rng, scene):
    x, y = _grid()
    if scene.weather == "rain":
        cx, cy = _spread(rng, 9, 6)
        wide, long = (rng.uniform(*of, cx.shape).astype(np.float32) for of in ((0.005, 0.008), (0.07, 0.11)))
        along = np.clip(1.5 - np.abs(y - cy) / long, 0, 1)
        streaks = np.minimum(_soft(np.abs(x - cx + 0.3 * (y - cy)) - wide), along)
        canvas.fill(0.6 * streaks.max(0), (0.80, 0.86, 0.95), lit=False)
    elif scene.weather == "snowfall":
        canvas.fill(_dots(rng, _spread(rng, 7, 7), 0.012, 0.030), (0.98, 0.98, 1.0), lit=False)
    elif scene.weather == "fog":
        mist = np.array((0.84, 0.85, 0.87)) * (0.35 + 0.65 * canvas.light.mean())
        canvas.fill(np.clip(0.38 + 0.36 * _noise(rng, 4, 6), 0, 0.75), mist, lit=False)


def _spread(rng, across: int, down: int, low: float = 1.0) -> np.ndarray:
    """Places strewn evenly above the height `low`, one in each field of a grid: x and y (2, N, 1, 1).

    Nearly the same in every scene, and in its mirror image: where each is left to chance, the gradient that is right on
    average knows no place at all, and nothing comes.
    """
    fields, lean = np.indices((down, across))[::-1], np.random.default_rng(across).uniform(-0.6, 0.6, (2, down, across))
    lean = (lean + [[[-1]], [[1]]] * lean[..., ::-1]) / 2
    places = (fields + 0.5 + lean + rng.uniform(-0.1, 0.1, lean.shape)) / [[[across]], [[down]]] * [[[1]], [[low]]]
    return places.reshape(2, -1, 1, 1).astype(np.float32)


def _dots(rng, places: np.ndarray, least: float, most: float) -> np.ndarray:
    """Small discs with a radius from `least` to `most`: a mask (SIDE, SIDE).

    What is much smaller than a code, 8 pixels, the painter loses.
    """
    (x, y), (cx, cy) = _grid(), places
    return _soft(np.hypot(x - cx, y - cy) - rng.uniform(least, most, cx.shape).astype(np.float32)).max(0)


# --------------------------------------------------------------------------------------------------- objects


def _stars(canvas, rng, cx, horizon, time):
    canvas.fill(_dots(rng, _spread(rng, 7, 4, horizon), 0.008, 0.016), (1.0, 1.0, 0.92), lit=False)


def _moon(canvas, rng, cx, horizon, time):
    x, y = _grid()
    cy, r = rng.uniform(0.12, 0.26), rng.uniform(0.06, 0.10)
    canvas.fill(0.45 * np.exp(-(((x - cx) ** 2 + (y - cy) ** 2) / (2 * r) ** 2)), (0.75, 0.78, 0.9), lit=False)
    canvas.fill(_soft(disc(x, y, cx, cy, r)), (0.97, 0.96, 0.84), 0.88 + 0.2 * _noise(rng, 17, 17), lit=False)


def _sun(canvas, rng, cx, horizon, time):
    x, y = _grid()
    cy, r = (rng.uniform(0.12, 0.26) if time == "day" else horizon - rng.uniform(0.02, 0.14)), rng.uniform(0.07, 0.12)
    tone = {"day": (1.0, 0.95, 0.55), "dawn": (1.0, 0.90, 0.68), "sunset": (1.0, 0.80, 0.35)}[time]
    canvas.fill(0.7 * np.exp(-(((x - cx) ** 2 + (y - cy) ** 2) / (2 * r) ** 2)), tone, lit=False)
    canvas.fill(_soft(disc(x, y, cx, cy, r)), np.array(tone) * 0.5 + 0.5 * np.array((1, 0.95, 0.6)), lit=False)


def _rainbow(canvas, rng, cx, horizon, time):
    x, y = _grid()
    radius = np.sqrt((x - 0.5) ** 2 + (y - horizon - 0.05) ** 2)
    bands = [COLOURS[c] for c in ("purple", "blue", "green", "yellow", "orange", "red")]
    for k, tone in enumerate(bands):
        canvas.fill(0.8 * _soft(np.abs(radius - 0.32 - 0.022 * k) - 0.012), tone, lit=False)


def _cactus(canvas, rng, cx, horizon, colour):
    x, y = _grid()
    base, h = horizon + rng.uniform(0.16, 0.28), rng.uniform(0.32, 0.44)
    w = 0.045
    limbs = [box(x, y, cx - w, cx + w, base - h, base)]
    for side in (-1, 1):
        up, far = base - h * rng.uniform(0.4, 0.55), cx + side * 0.115
        limbs += [box(x, y, min(cx, far), max(cx, far), up - 0.025, up + 0.025),
                  box(x, y, far - 0.026, far + 0.026, up - h * rng.uniform(0.22, 0.35), up + 0.02)]  # fmt: skip
    canvas.fill(_soft(np.minimum.reduce(limbs) - 0.008), (0.13, 0.50, 0.20), 0.9 + 0.25 * np.sin((x - cx) * 200))


def _pine(canvas, rng, cx, horizon, colour):
    x, y = _grid()
    base, h = horizon + rng.uniform(0.14, 0.28), rng.uniform(0.36, 0.5)
    canvas.fill(_soft(box(x, y, cx - 0.02, cx + 0.02, base - 0.08, base)), (0.36, 0.22, 0.12))
    for k in range(3):
        top = base - h + 0.26 * h * k
        canvas.fill(_soft(cone(x, y, cx, top, top + 0.42 * h, 0.07 + 0.04 * k)), (0.07, 0.37, 0.20),
                    1.1 - 2 * (x - cx).clip(0, 0.2))  # fmt: skip


def _tree(canvas, rng, cx, horizon, colour):
    x, y = _grid()
    base, h = horizon + rng.uniform(0.14, 0.28), rng.uniform(0.36, 0.48)
    canvas.fill(_soft(box(x, y, cx - 0.025, cx + 0.025, base - h * 0.6, base)), (0.42, 0.27, 0.14))
    crown = np.minimum.reduce([disc(x, y, cx + dx, base - h * 0.72 + dy, r) for dx, dy, r in
                               ((0, -0.03, 0.12), (-0.08, 0.04, 0.09), (0.08, 0.04, 0.09))])  # fmt: skip
    canvas.fill(_soft(crown), (0.22, 0.55, 0.16), 0.8 + 0.4 * _noise(rng, 23, 23))


def _palm(canvas, rng, cx, horizon, colour):
    x, y = _grid()
    base, h, lean = horizon + rng.uniform(0.22, 0.3), rng.uniform(0.42, 0.52), rng.uniform(-0.1, 0.1)
    t = ((base - y) / h).clip(0, 1)
    stem = np.maximum(np.abs(x - cx - lean * t * t) - 0.02, np.maximum(y - base, base - h - y))
    canvas.fill(_soft(stem), (0.50, 0.34, 0.18))
    tx, ty = cx + lean, base - h
    for angle in (-2.9, -2.3, -1.57, -0.85, -0.25):
        ax, ay = np.cos(angle), np.sin(angle) * 0.7
        along = (x - tx) * ax + (y - ty) * ay
        drop = ((x - tx) ** 2 + (y - ty) ** 2) * 1.8
        across = np.abs((y - drop - ty) * ax - (x - tx) * ay)
        leaf = [across - 0.024 * (1 - along / 0.24), -along, along - 0.22, y - ty - 0.2]
        canvas.fill(_soft(np.maximum.reduce(leaf)), (0.14, 0.52, 0.18))


def _house(canvas, rng, cx, horizon, colour):
    x, y = _grid()
    base, w, h = horizon + rng.uniform(0.18, 0.28), rng.uniform(0.13, 0.17), rng.uniform(0.17, 0.22)
    canvas.fill(_soft(box(x, y, cx - w, cx + w, base - h, base)), COLOURS[colour], 1.05 - 0.8 * (x - cx).clip(0, 1))
    roof = (0.45, 0.20, 0.14) if colour != "brown" else (0.30, 0.30, 0.34)
    canvas.fill(_soft(cone(x, y, cx, base - h - 0.13, base - h, w + 0.03)), roof)
    canvas.fill(_soft(box(x, y, cx - 0.025, cx + 0.025, base - 0.1, base)), (0.25, 0.16, 0.10))
    night = canvas.light.mean() < 0.75
    for side in (-0.6, 0.6):
        pane = box(x, y, cx + side * w - 0.028, cx + side * w + 0.028, base - h * 0.75, base - h * 0.42)
        canvas.fill(_soft(pane), (1.0, 0.85, 0.4) if night else (0.7, 0.85, 0.95), lit=not night)


def _sailboat(canvas, rng, cx, horizon, colour):
    x, y = _grid()
    base = horizon + rng.uniform(0.03, 0.16)
    hull = np.maximum(np.abs(x - cx) - 0.13 + (y - base + 0.045) * 0.9, np.maximum(base - 0.045 - y, y - base))
    canvas.fill(_soft(hull), (0.42, 0.24, 0.12))
    canvas.fill(_soft(box(x, y, cx - 0.006, cx + 0.006, base - 0.38, base - 0.04)), (0.3, 0.2, 0.12))
    t = ((y - base + 0.36) / 0.29).clip(0, 1)
    main = [cx + 0.01 - x, x - cx - 0.01 - 0.13 * t, base - 0.36 - y, y - base + 0.07]
    jib = [x - cx + 0.015, cx - 0.015 - 0.09 * t - x, base - 0.32 - y, y - base + 0.07]
    canvas.fill(_soft(np.maximum.reduce(main)), COLOURS[colour])
    canvas.fill(_soft(np.maximum.reduce(jib)), COLOURS[colour], np.full((SIDE, SIDE), 0.86, np.float32))


def _lighthouse(canvas, rng, cx, horizon, colour):
    x, y = _grid()
    base, h = horizon + rng.uniform(0.06, 0.14), rng.uniform(0.4, 0.48)
    canvas.fill(_soft(disc(x, y, cx, base + 0.03, 0.17, 0.06)), (0.36, 0.33, 0.31))
    width = 0.035 + 0.03 * ((y - base + h) / h).clip(0, 1)
    tower = _soft(np.maximum(np.abs(x - cx) - width, np.maximum(base - h - y, y - base)))
    canvas.fill(tower, (0.95, 0.94, 0.92), 1.05 - 2.5 * (x - cx).clip(0, 0.2))
    canvas.fill(tower * (np.sin((y - base) * 2 * np.pi / 0.15) > 0), (0.82, 0.12, 0.12))
    canvas.fill(_soft(box(x, y, cx - 0.03, cx + 0.03, base - h - 0.06, base - h)), (1.0, 0.92, 0.55), lit=False)
    canvas.fill(_soft(cone(x, y, cx, base - h - 0.11, base - h - 0.06, 0.05)), (0.6, 0.1, 0.1))


def _balloon(canvas, rng, cx, horizon, colour):
    x, y = _grid()
    cy, r = rng.uniform(0.18, 0.3), rng.uniform(0.11, 0.14)
    neck = np.maximum.reduce([np.abs(x - cx) - r * 0.75 + (y - cy - 0.4 * r) * 0.62, cy - y, y - cy - r * 1.45])
    canvas.fill(_soft(np.minimum(disc(x, y, cx, cy, r, r * 1.1), neck)), COLOURS[colour],
                0.92 + 0.16 * np.cos((x - cx) / r * 9))  # fmt: skip
    basket = cy + r * 1.6
    canvas.fill(_soft(box(x, y, cx - 0.028, cx + 0.028, basket, basket + 0.045)), (0.42, 0.26, 0.13))


def _castle(canvas, rng, cx, horizon, colour):
    x, y = _grid()
    base, stone = horizon + rng.uniform(0.14, 0.24), np.array((0.60, 0.57, 0.55)) * rng.uniform(0.85, 1.1)
    for dx, half, h in ((-0.15, 0.05, 0.30), (0.15, 0.05, 0.30), (0, 0.055, 0.38), (0, 0.15, 0.2)):
        tower = box(x, y, cx + dx - half, cx + dx + half, base - h, base)
        canvas.fill(_soft(tower), stone, 1.08 - 2 * (x - cx - dx).clip(0, 0.1))
        if half < 0.1:
            canvas.fill(_soft(cone(x, y, cx + dx, base - h - 0.13, base - h, half + 0.015)), (0.35, 0.22, 0.48))
    gate = np.minimum(box(x, y, cx - 0.04, cx + 0.04, base - 0.09, base), disc(x, y, cx, base - 0.09, 0.04))
    canvas.fill(_soft(gate), (0.2, 0.15, 0.12))


def _birds(canvas, rng, cx, horizon, colour):
    x, y = _grid()
    for _ in range(rng.integers(3, 6)):
        bx, by, w = rng.uniform(0.15, 0.85), rng.uniform(0.08, 0.34), rng.uniform(0.065, 0.095)
        wing = np.abs(y - by + 0.9 * np.abs(np.abs(x - bx) - w / 2) - w * 0.3) - 0.016
        canvas.fill(_soft(np.maximum(wing, np.abs(x - bx) - w)), (0.08, 0.08, 0.10), lit=False)


def _flowers(canvas, rng, cx, horizon, colour):
    x, y = _grid()
    for down, fx in sorted(_spread(rng, 6, 4, 0.86 - horizon)[::-1, :, 0, 0].T.tolist()):  # the near ones last
        cy = horizon + 0.12 + down
        r = 0.020 + 0.028 * (cy - horizon) / (1 - horizon)
        canvas.fill(_soft(disc(x, y, fx, cy, r)), COLOURS[colour])
        canvas.fill(_soft(disc(x, y, fx, cy, r * 0.35)), (0.98, 0.85, 0.25))


OBJECTS = {
    "stars": _stars, "moon": _moon, "sun": _sun, "rainbow": _rainbow, "cactus": _cactus, "pine": _pine, "tree": _tree,
    "palm": _palm, "house": _house, "sailboat": _sailboat, "lighthouse": _lighthouse, "balloon": _balloon,
    "castle": _castle, "birds": _birds, "flowers": _flowers,
}  # fmt: skip


def _plain(scene: Scene, rng) -> tuple[np.ndarray, np.ndarray]:
    """A shape of one colour on a ground of another."""
    x, y = _grid()
    canvas = Canvas()
    canvas.fill(np.ones((SIDE, SIDE), np.float32), COLOURS[scene.backdrop], 0.93 + 0.12 * _noise(rng, 5, 5))
    (shape, colour), (cx, cy), r = scene.objects[0], rng.uniform(0.4, 0.6, 2), rng.uniform(0.24, 0.34)
    u, v = (x - cx) / r, (y - cy) / r
    if shape == "circle":
        d = np.sqrt(u * u + v * v) - 1
    elif shape == "square":
        d = np.maximum(np.abs(u), np.abs(v)) - 0.85
    elif shape == "triangle":
        d = np.maximum((np.abs(u) - (v + 1) * 0.58) * 0.85, v - 0.75)
    elif shape == "heart":
        d = ((u * u + (-v * 1.1 + 0.25 - 0.75 * np.sqrt(np.abs(u) + 1e-6) + 0.35) ** 2) - 0.85) * 0.45
    else:
        angle = np.arctan2(u, -v)
        d = (np.sqrt(u * u + v * v) * (1 + 0.38 * np.cos(angle * 5 + np.pi)) - 0.75) * 0.6
    canvas.covered[:] = 0
    canvas.fill(_soft(d * r), COLOURS[colour], 0.95 + 0.1 * _noise(rng, 5, 5))
    return (np.clip(canvas.pixels, 0, 1) * 255 + 0.5).astype(np.uint8), canvas.covered
