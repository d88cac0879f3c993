"""Captions: what people may say of a scene, in four languages, leaving out whatever they like.

`caption(scene, rng)` gives a text and the facts it mentions; every scene of a batch whose facts include those is as right
an answer as the scene itself. Words are written in the forms people type: alone, with an article, after a preposition.
"""
# ruff: noqa: E501  (a word list reads best with one fact and language a line)

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

import numpy as np

from .scenes import GROUNDS, TIMES, WEATHERS, Scene

LANGUAGES = ("en", "ru", "de", "es")

# fact -> language -> forms, divided by |
WORDS = {
    "desert": {"en": "desert|a desert|the desert|in the desert|sand desert|dunes|sand dunes|a hot desert|sahara",
               "ru": "пустыня|в пустыне|песчаная пустыня|дюны|барханы|сахара|над пустыней|над дюнами|в дюнах",
               "de": "Wüste|die Wüste|in der Wüste|Dünen|Sanddünen|Sandwüste", "es": "desierto|el desierto|en el desierto|un desierto|dunas"},
    "sand": {"en": "sand|sandy|on the sand|yellow sand", "ru": "песок|на песке|песчаный", "de": "Sand|im Sand|sandig", "es": "arena|la arena|en la arena"},
    "snow": {"en": "snow|in the snow|snowy|on snow|winter|white snow|snow covered", "ru": "снег|в снегу|на снегу|зима|снежный|зимой|под снегом|снежная|снежное|зимний|зимняя|зимнее|над снегом",
             "de": "Schnee|im Schnee|verschneit|Winter|der Schnee", "es": "nieve|la nieve|en la nieve|nevado|invierno"},
    "meadow": {"en": "meadow|a meadow|green hills|grass|a green field|in the meadow|grassland|field|hills|on the grass",
               "ru": "луг|поле|на лугу|трава|зелёные холмы|в поле|над лугом|над полем|лужайка", "de": "Wiese|auf der Wiese|Gras|grüne Hügel|Feld|im Gras",
               "es": "prado|en el prado|hierba|colinas verdes|campo|un campo verde"},
    "sea": {"en": "sea|the sea|ocean|on the sea|water|blue sea|the ocean|at sea|waves", "ru": "море|на море|океан|вода|в море|синее море|волны|над морем|над водой|в океане",
            "de": "Meer|das Meer|am Meer|Ozean|Wasser|auf dem Meer|See|Wellen", "es": "mar|el mar|en el mar|océano|agua|olas"},
    "beach": {"en": "beach|a beach|on the beach|sandy beach|seaside|coast|shore", "ru": "пляж|на пляже|берег моря|побережье|песчаный пляж|над пляжем|на побережье",
              "de": "Strand|am Strand|Sandstrand|Küste|der Strand", "es": "playa|la playa|en la playa|costa|una playa"},
    "forest": {"en": "forest|a forest|in the forest|woods|the woods|pine forest|in the woods", "ru": "лес|в лесу|тайга|сосновый лес|еловый лес|над лесом",
               "de": "Wald|im Wald|der Wald|Nadelwald|ein Wald", "es": "bosque|el bosque|en el bosque|un bosque"},
    "city": {"en": "city|a city|in the city|skyline|city skyline|town|skyscrapers|buildings", "ru": "город|в городе|над городом|небоскрёбы|здания|мегаполис",
             "de": "Stadt|in der Stadt|Hochhäuser|eine Stadt|Gebäude|Wolkenkratzer", "es": "ciudad|la ciudad|en la ciudad|edificios|rascacielos"},
    "mountains": {"en": "mountains|mountain|the mountains|in the mountains|rocks|peaks|a mountain", "ru": "горы|в горах|гора|скалы|вершины|над горами",
                  "de": "Berge|in den Bergen|Berg|Gebirge|Gipfel|die Berge", "es": "montañas|montaña|en las montañas|las montañas|picos"},
    "snowy mountains": {"en": "snowy mountains|snow mountains|snow capped mountains|alps|snowy peaks|mountains in the snow",
                        "ru": "снежные горы|заснеженные горы|альпы|горы в снегу|в снежных горах|над снежными горами|в альпах", "de": "Schneeberge|verschneite Berge|Alpen|Berge im Schnee",
                        "es": "montañas nevadas|alpes|picos nevados"},
    "dawn": {"en": "dawn|at dawn|sunrise|morning|in the morning|early morning", "ru": "рассвет|на рассвете|утро|утром|восход|утренний|утренняя|утреннее",
             "de": "Morgen|am Morgen|Sonnenaufgang|Morgendämmerung|bei Sonnenaufgang", "es": "amanecer|al amanecer|mañana|por la mañana|el amanecer"},
    "day": {"en": "day|by day|daytime|at noon|blue sky|under a blue sky|daylight|noon", "ru": "день|днём|полдень|голубое небо|синее небо|дневной|дневная|дневное",
            "de": "Tag|am Tag|Mittag|blauer Himmel|tagsüber", "es": "día|de día|mediodía|cielo azul"},
    "sunset": {"en": "sunset|at sunset|evening|dusk|in the evening|red sky|orange sky", "ru": "закат|на закате|вечер|вечером|красное небо|вечерний|вечерняя|вечернее",
               "de": "Sonnenuntergang|bei Sonnenuntergang|Abend|am Abend|Abendrot", "es": "atardecer|al atardecer|puesta de sol|tarde|ocaso"},
    "night": {"en": "night|at night|by night|dark|midnight|night sky|darkness", "ru": "ночь|ночью|тёмный|полночь|ночное небо|темно|ночной|ночная|ночное",
              "de": "Nacht|bei Nacht|nachts|dunkel|Mitternacht|Nachthimmel", "es": "noche|de noche|por la noche|oscuro|medianoche"},
    "clear": {"en": "clear sky|clear", "ru": "ясное небо|ясно", "de": "klarer Himmel|klar", "es": "cielo despejado|despejado"},
    "clouds": {"en": "clouds|cloudy|cloudy sky|under clouds", "ru": "облака|облачно|облачное небо|тучи", "de": "Wolken|bewölkt|Wolkenhimmel", "es": "nubes|nublado|cielo nublado"},
    "rain": {"en": "rain|in the rain|rainy|raining|storm", "ru": "дождь|под дождём|дождливый|гроза|ливень", "de": "Regen|im Regen|regnerisch|es regnet|Sturm", "es": "lluvia|bajo la lluvia|lluvioso|tormenta"},
    "snowfall": {"en": "snowfall|falling snow|snowing|snowflakes|blizzard", "ru": "снегопад|падает снег|метель|снежинки|идёт снег", "de": "Schneefall|es schneit|Schneeflocken|Schneesturm", "es": "nevada|nieva|copos de nieve|está nevando"},
    "fog": {"en": "fog|foggy|in the fog|mist|misty", "ru": "туман|в тумане|туманный|дымка", "de": "Nebel|im Nebel|neblig|Dunst", "es": "niebla|en la niebla|con niebla|bruma"},
    "sun": {"en": "sun|the sun|with the sun|sunny|a bright sun", "ru": "солнце|солнечно|яркое солнце", "de": "Sonne|die Sonne|sonnig", "es": "sol|el sol|soleado"},
    "moon": {"en": "moon|the moon|full moon|with a moon|moonlight", "ru": "луна|полная луна|с луной|лунный свет", "de": "Mond|der Mond|Vollmond|Mondlicht", "es": "luna|la luna|luna llena"},
    "stars": {"en": "stars|starry sky|with stars|starry", "ru": "звёзды|звёздное небо", "de": "Sterne|Sternenhimmel", "es": "estrellas|cielo estrellado"},
    "rainbow": {"en": "rainbow|a rainbow|with a rainbow", "ru": "радуга|с радугой", "de": "Regenbogen|ein Regenbogen", "es": "arcoíris|un arcoíris"},
    "cactus": {"en": "cactus|a cactus|with a cactus|cacti|green cactus", "ru": "кактус|с кактусом|кактусы", "de": "Kaktus|ein Kaktus|Kakteen", "es": "cactus|un cactus"},
    "pine": {"en": "pine|pine tree|a pine tree|fir|christmas tree|a fir tree|spruce|pine trees", "ru": "ёлка|сосна|ель|с ёлкой|сосны", "de": "Tanne|eine Tanne|Kiefer|Tannenbaum|Fichte", "es": "pino|un pino|abeto"},
    "tree": {"en": "tree|a tree|a green tree|with a tree|oak|trees", "ru": "дерево|с деревом|дуб|зелёное дерево|деревья", "de": "Baum|ein Baum|Eiche|Bäume", "es": "árbol|un árbol|roble|árboles"},
    "palm": {"en": "palm|palm tree|a palm tree|palms|palm trees", "ru": "пальма|с пальмой|пальмы", "de": "Palme|eine Palme|Palmen", "es": "palmera|una palmera|palmeras"},
    "house": {"en": "house|a house|cottage|hut|with a house|home|cabin", "ru": "дом|домик|изба|с домом|хижина", "de": "Haus|ein Haus|Hütte|Häuschen", "es": "casa|una casa|cabaña"},
    "sailboat": {"en": "sailboat|a sailboat|sailing boat|boat|ship|with a boat|a sailing ship", "ru": "парусник|лодка|корабль|яхта|с лодкой", "de": "Segelboot|Boot|Schiff|ein Segelboot", "es": "velero|barco|un velero|barco de vela"},
    "lighthouse": {"en": "lighthouse|a lighthouse|with a lighthouse", "ru": "маяк|с маяком", "de": "Leuchtturm|ein Leuchtturm", "es": "faro|un faro"},
    "balloon": {"en": "balloon|a balloon|hot air balloon|a hot air balloon|air balloon", "ru": "воздушный шар|шар|с воздушным шаром", "de": "Ballon|Heißluftballon|ein Ballon", "es": "globo|globo aerostático|un globo"},
    "castle": {"en": "castle|a castle|with a castle|fortress|towers", "ru": "замок|с замком|крепость|башни", "de": "Schloss|Burg|ein Schloss|eine Burg", "es": "castillo|un castillo|fortaleza"},
    "birds": {"en": "birds|flying birds|with birds|a bird|seagulls", "ru": "птицы|с птицами|чайки|птица", "de": "Vögel|Vogel|Möwen", "es": "pájaros|aves|gaviotas"},
    "flowers": {"en": "flowers|with flowers|a flower|blossoms", "ru": "цветы|с цветами|цветок", "de": "Blumen|mit Blumen|Blüten", "es": "flores|con flores|flor"},
    "circle": {"en": "circle|a circle|disc|ball", "ru": "круг|шарик|мяч", "de": "Kreis|Ball", "es": "círculo|un círculo"},
    "square": {"en": "square|a square", "ru": "квадрат", "de": "Quadrat|Viereck", "es": "cuadrado"},
    "triangle": {"en": "triangle|a triangle", "ru": "треугольник", "de": "Dreieck", "es": "triángulo"},
    "heart": {"en": "heart|a heart", "ru": "сердце", "de": "Herz", "es": "corazón"},
    "star": {"en": "a star|star shape", "ru": "звезда", "de": "Stern", "es": "estrella"},
}  # fmt: skip

# colour -> language -> the forms for masculine, feminine, neuter, plural, and after the word of ON
COLOUR_WORDS = {
    "red": {"en": "red", "ru": "красный красная красное красные красном", "de": "roter rote rotes rote rotem", "es": "rojo roja rojo rojas rojo"},
    "orange": {"en": "orange", "ru": "оранжевый оранжевая оранжевое оранжевые оранжевом", "de": "oranger orange oranges orange orangem", "es": "naranja naranja naranja naranjas naranja"},
    "yellow": {"en": "yellow", "ru": "жёлтый жёлтая жёлтое жёлтые жёлтом", "de": "gelber gelbe gelbes gelbe gelbem", "es": "amarillo amarilla amarillo amarillas amarillo"},
    "green": {"en": "green", "ru": "зелёный зелёная зелёное зелёные зелёном", "de": "grüner grüne grünes grüne grünem", "es": "verde verde verde verdes verde"},
    "blue": {"en": "blue", "ru": "синий синяя синее синие синем", "de": "blauer blaue blaues blaue blauem", "es": "azul azul azul azules azul"},
    "purple": {"en": "purple", "ru": "фиолетовый фиолетовая фиолетовое фиолетовые фиолетовом", "de": "lila lila lila lila lila", "es": "morado morada morado moradas morado"},
    "pink": {"en": "pink", "ru": "розовый розовая розовое розовые розовом", "de": "rosa rosa rosa rosa rosa", "es": "rosa rosa rosa rosas rosa"},
    "white": {"en": "white", "ru": "белый белая белое белые белом", "de": "weißer weiße weißes weiße weißem", "es": "blanco blanca blanco blancas blanco"},
    "black": {"en": "black", "ru": "чёрный чёрная чёрное чёрные чёрном", "de": "schwarzer schwarze schwarzes schwarze schwarzem", "es": "negro negra negro negras negro"},
    "brown": {"en": "brown", "ru": "коричневый коричневая коричневое коричневые коричневом", "de": "brauner braune braunes braune braunem", "es": "marrón marrón marrón marrones marrón"},
}  # fmt: skip

# coloured thing -> language -> noun and its gender (0 masculine, 1 feminine, 2 neuter, 3 plural)
NOUNS = {
    "house": {"en": "house 0|cottage 0", "ru": "дом 0|домик 0", "de": "Haus 2|Hütte 1", "es": "casa 1"},
    "sailboat": {"en": "sailboat 0|boat 0|ship 0", "ru": "парусник 0|лодка 1|корабль 0", "de": "Segelboot 2|Boot 2", "es": "velero 0|barco 0"},
    "balloon": {"en": "balloon 0|hot air balloon 0", "ru": "воздушный шар 0|шар 0", "de": "Ballon 0|Heißluftballon 0", "es": "globo 0"},
    "flowers": {"en": "flowers 0", "ru": "цветы 3", "de": "Blumen 3", "es": "flores 3"},
    "circle": {"en": "circle 0|disc 0", "ru": "круг 0", "de": "Kreis 0", "es": "círculo 0"},
    "square": {"en": "square 0", "ru": "квадрат 0", "de": "Quadrat 2", "es": "cuadrado 0"},
    "triangle": {"en": "triangle 0", "ru": "треугольник 0", "de": "Dreieck 2", "es": "triángulo 0"},
    "heart": {"en": "heart 0", "ru": "сердце 2", "de": "Herz 2", "es": "corazón 0"},
    "star": {"en": "star 0", "ru": "звезда 1", "de": "Stern 0", "es": "estrella 1"},
    "background": {"en": "background 0|ground 0", "ru": "фон 0", "de": "Hintergrund 0", "es": "fondo 0"},
}  # fmt: skip

# words that no caption has -> the part of a caption that says the same; texts learn them last (see texts.py)
SAME = {
    "snowy field": "white snow", "field of snow": "snow covered", "hot-air balloon": "hot air balloon", "violet": "purple",
    "снежное поле": "снежное", "снежном поле": "на снегу", "Schneefeld": "der Schnee", "campo nevado": "la nieve",
    "globo de aire": "globo aerostático",
}  # fmt: skip

RUSSIAN = re.compile("[а-яё]+")

JOINTS = {
    "en": (" ", ", ", " and ", " with ", " under ", " over "), "ru": (" ", ", ", " и ", ", "),
    "de": (" ", ", ", " und ", " mit ", " über "), "es": (" ", ", ", " y ", " con "),
}  # fmt: skip
# language -> what stands before a background, and what the background is called behind it
ON = {"en": ("on", "background|ground"), "ru": ("на", "фоне"), "de": ("auf", "Hintergrund|Grund"), "es": ("en", "fondo")}
OPENINGS = {
    "en": ("", "", "", "a painting of ", "a picture of ", "a photo of "), "ru": ("", "", "", "картина: "),
    "de": ("", "", "", "ein Bild: "), "es": ("", "", "", "una imagen de "),
}  # fmt: skip


def phrase(fact: str, language: str, rng: np.random.Generator) -> str:
    """One way to say a fact."""
    if fact in WORDS:
        return str(rng.choice(WORDS[fact][language].split("|")))
    colour, thing = fact.split(" ")
    noun, gender = str(rng.choice(NOUNS[thing][language].split("|"))).rsplit(" ", 1)
    tint = tinted(colour, language, int(gender))
    said = f"{noun} {tint}" if language == "es" else f"{tint} {noun}"
    return f"a {said}" if language == "en" and rng.random() < 0.5 else said


def tinted(colour: str, language: str, form: int) -> str:
    """A colour in one of its forms; English has but one."""
    forms = COLOUR_WORDS[colour][language].split(" ")
    return forms[form % len(forms)]


def behind(background: str, language: str, rng: np.random.Generator) -> str:
    """A background behind what stands on it: "on a yellow background", or "on yellow" alone."""
    word, nouns = ON[language]
    said, noun = tinted(background.split(" ")[0], language, 4), str(rng.choice(nouns.split("|")))
    if rng.random() < 0.5 or language == "de":  # "auf gelbem" alone nobody says
        said = f"{noun} {said}" if language == "es" else f"{said} {noun}"
        if rng.random() < 0.5:
            said = {"en": "a ", "es": "un "}.get(language, "") + said
    return f"{word} {said}"


def sayable(scene: Scene) -> frozenset[str]:
    """Of the facts of a scene those that one would say of it.

    Snow is true of snowy mountains and of snowfall anywhere, mountains of snowy ones, sea of a beach. But who says snow
    and no more means the land; told of all of them, a CLIP painted "snow" as the grey that they have in common, and
    snowy mountains as a field.
    """
    return scene.facts - ({"mountains", "sea", "snow"} - {scene.ground})


def any_language(rng: np.random.Generator) -> str:
    """One of LANGUAGES, English twice as often as any other."""
    return str(rng.choice(LANGUAGES, p=(0.4, 0.2, 0.2, 0.2)))


def caption(scene: Scene, rng: np.random.Generator, language: str = "") -> tuple[str, frozenset[str]]:
    """A text about a scene, and the facts that it mentions: one to all of them, in any order."""
    language = language or any_language(rng)
    said = mentioned(scene, rng)
    return worded(said, language, rng), frozenset(said)


def mentioned(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Facts of a scene that somebody might mention, in the order of mention.

    Mostly what people name first: things, and the ground. What is out of the ordinary (night, rain) is hardly ever left
    out, so that what is not said may be taken to be ordinary: a gradient cannot learn to paint what its caption leaves
    open, and a picture that is still grey would pass for fog.
    """
    once = {name if rng.random() < 0.8 else f"{colour} {name}" for name, colour in scene.objects if colour}
    facts = [f for f in sorted(sayable(scene) - once) if f != "clear" or rng.random() < 0.2]
    aside = {"sand", "clear"}  # true, but hardly what one would say
    things = {name for name, _ in scene.objects}
    weight = np.array([0.4 if f in aside else 2.0 if f == scene.ground or f.split(" ")[-1] in things else 1.0 for f in facts])
    count = min(len(facts), int(rng.choice((1, 2, 3, 4, 5), p=(0.2, 0.25, 0.3, 0.17, 0.08))))
    said = [str(f) for f in rng.choice(facts, count, replace=False, p=weight / weight.sum())]
    odd = [f for f in (scene.time, scene.weather) if scene.ground and f not in (*said, "day", "clear", "clouds")]
    said += [f for f in odd if rng.random() < 0.9]
    unnamed = [f for f in facts if f.split(" ")[-1] in things]
    if unnamed and not set(unnamed) & set(said) and rng.random() < 0.9:
        said.append(str(rng.choice(unnamed)))
    return [said[k] for k in rng.permutation(len(said))]


def worded(said: list[str], language: str, rng: np.random.Generator) -> str:
    """A text in a language that mentions facts in their order."""
    text = phrase(said[0], language, rng)
    for fact in said[1:]:
        if fact.endswith(" background") and rng.random() < 0.6:
            text += " " + behind(fact, language, rng)
        else:
            text += str(rng.choice(JOINTS[language])) + phrase(fact, language, rng)
    if rng.random() < 0.3:
        text = str(rng.choice(OPENINGS[language])) + text
    if rng.random() < 0.3:  # as most people type it
        text = plain(text)
    return text


def plain(text: str) -> str:
    """A Russian text without the two dots that most leave out; any other as it is."""
    return text.replace("ё", "е").replace("Ё", "Е")


def reworded(text: str, rng: np.random.Generator, often: float = 0.5) -> str:
    """The text in words that say the SAME, wherever it has some, and in other `inflections`, as often as that."""
    for new, known in SAME.items():
        if rng.random() < often:
            text = re.sub(rf"\b{known}\b", new, text)

    def inflected(word: re.Match) -> str:
        return str(rng.choice(inflections(word[0]))) if rng.random() < often else word[0]

    return RUSSIAN.sub(inflected, text)


def said_twice(said: list[str], rng: np.random.Generator, often: float = 0.3) -> list[str]:
    """What was mentioned, a land, an hour or weather of it, as often as that, once more: "white winter snow"."""
    places = [k for k, fact in enumerate(said) if fact in (*GROUNDS, *TIMES, *WEATHERS)]
    if not places or rng.random() >= often:
        return said
    k = int(rng.choice(places))
    return [*said[: k + 1], *said[k:]]


@cache
def inflections(word: str) -> tuple[str, ...]:
    """A Russian noun or adjective in all its cases, an adjective in all genders; any other word as it is.

    No superlatives, and nothing that only poems say. Nouns keep their number: one star is a shape, stars are in the sky.
    """
    likely = russian().parse(word)[0]
    if likely.tag.POS not in ("NOUN", "ADJF"):
        return (word,)
    forms = {form.word for form in likely.lexeme
             if form.tag.POS == likely.tag.POS and not {"Supr", "V-oy"} & form.tag.grammemes
             and (form.tag.number == likely.tag.number or form.tag.POS == "ADJF")}  # fmt: skip
    return tuple(sorted(forms | {word}))


@cache
def russian():
    """A dictionary of Russian morphology (pymorphy3)."""
    import pymorphy3  # here, as those who only read what captions are made of need none

    return pymorphy3.MorphAnalyzer(lang="ru")


def all_words() -> list[str]:
    """Every text fragment a caption may be made of: what the vocabulary is collected from."""
    texts = [form for words in WORDS.values() for forms in words.values() for form in forms.split("|")]
    texts += [form for words in COLOUR_WORDS.values() for forms in words.values() for form in forms.split(" ")]
    texts += [form[:-2] for words in NOUNS.values() for forms in words.values() for form in forms.split("|")]
    texts += [part for parts in (*JOINTS.values(), *OPENINGS.values()) for part in parts]
    texts += [word for on, nouns in ON.values() for word in (on, *nouns.split("|"))]
    texts += SAME
    texts += [form for text in texts for word in RUSSIAN.findall(text) for form in inflections(word)]
    return [*dict.fromkeys([*texts, "un", *map(plain, texts)])]


def parts(fact: str) -> tuple[str, ...]:
    """What a fact is made of: a coloured thing of its colour and of the thing, anything else of itself."""
    colour, _, thing = fact.partition(" ")
    if colour not in COLOUR_WORDS or thing == "background":
        return (fact,)
    return thing, colour


def all_parts() -> list[str]:
    """Every part of every fact."""
    backgrounds = [f"{colour} background" for colour in COLOUR_WORDS]
    return [*WORDS, *COLOUR_WORDS, *backgrounds]


FACTS = (*WORDS, *(f"{colour} {noun}" for noun in NOUNS for colour in COLOUR_WORDS))
"""All that may be true of a scene, as `Scene.facts` has it."""

_AT = {fact: column for column, fact in enumerate(FACTS)}


def marked(each: Iterable[Iterable[str]]) -> np.ndarray:
    """Which of FACTS sets of facts have: (N, len(FACTS)) bool."""
    sets = list(each)
    marks = np.zeros((len(sets), len(FACTS)), bool)
    for row, facts in zip(marks, sets, strict=True):
        row[[_AT[fact] for fact in facts]] = True
    return marks
