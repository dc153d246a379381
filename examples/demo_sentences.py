"""Generate short opinions of known difficulty from a grammar.

1  The soup was wonderful.
2  Nobody found the soup wonderful. Nobody could overlook how wonderful the soup was.
3  Although the service was never dull, the soup was awful.
4  The soup was not wonderful, even if there was nothing awful about the service.
5  I do not believe that the soup was not wonderful, but nobody would deny that the service was never dull.

A negation may reverse an opinion or leave it unchanged, and in a contrast the main clause decides. Both are drawn
independently of the label, so above level 1 no single word reveals the label; it depends on the order of the words.
"""

import random
from typing import NamedTuple

LEVELS = {1: "plain", 2: "one negation", 3: "contrast", 4: "contrast of negations", 5: "nested negations"}

TOPICS = (
    ("soup", "bread", "dessert", "wine", "menu", "service", "terrace", "coffee"),
    ("plot", "acting", "ending", "music", "dialogue", "lighting", "opening scene", "camera work"),
    ("room", "breakfast", "bed", "pool", "view", "lobby", "staff", "garden"),
    ("screen", "battery", "camera", "keyboard", "speaker", "design", "software", "packaging"),
)
PRAISE = (
    "wonderful", "excellent", "superb", "lovely", "delightful", "brilliant",
    "great", "fantastic", "marvellous", "splendid", "impressive", "charming",
)  # fmt: skip
BLAME = (
    "awful", "terrible", "dreadful", "horrible", "poor", "dull",
    "disappointing", "lousy", "miserable", "appalling", "pathetic", "ghastly",
)  # fmt: skip
PLAIN = ("{it} was {so}", "{it} seemed {so}", "I found {it} {so}", "{it} turned out to be {so}")
# Both lists use the same negation words in the same order, so the word alone does not reveal whether it reverses.
REVERSING = (
    "{it} was not {so}",
    "{it} was never {so}",
    "nobody found {it} {so}",
    "there was nothing {so} about {it}",
    "I could not call {it} {so}",
    "{it} was in no way {so}",
)
KEEPING = (
    "it was not surprising how {so} {it} was",
    "I will never forget how {so} {it} was",
    "nobody could overlook how {so} {it} was",
    "nothing changed the fact that {it} was {so}",
    "I could not help seeing how {so} {it} was",
    "there was no doubt that {it} was {so}",
)
REVERSING_FRAMES = (
    "I do not believe that {clause}",
    "nobody would say that {clause}",
    "I would never claim that {clause}",
    "there is no reason to think that {clause}",
)
KEEPING_FRAMES = (
    "I do not doubt that {clause}",
    "nobody would deny that {clause}",
    "I would never dispute that {clause}",
    "there is no denying that {clause}",
)
CONTRASTS = (
    "although {yields}, {decides}",
    "{yields}, but {decides}",
    "{yields}, and yet {decides}",
    "{decides}, although {yields}",
    "{decides}, even though {yields}",
    "{decides}, even if {yields}",
)


class Sentence(NamedTuple):
    """A sentence, its label (1 praise, 0 blame), and its level of difficulty, 1 to 5."""

    text: str
    label: int
    level: int


def generate(*counts: int, seed: int = 0) -> tuple[list[Sentence], ...]:
    """Generate sets of sentences in random order, without duplicates within or between sets.

    In every set all levels are equally frequent, and so are both labels within each level.

    Args:
        *counts: Number of sentences of each set, a multiple of 10.
        seed: Seed of the sentences and of their order.

    Raises:
        ValueError: A count is not a positive multiple of 10, the number of levels times labels.
    """
    cells = [(level, label) for level in LEVELS for label in (0, 1)]
    rng = random.Random(seed)
    seen: set[str] = set()
    sets = []
    for count in counts:
        if count < 1 or count % len(cells):
            raise ValueError(f"count: got {count}; pass a positive multiple of {len(cells)}")
        sentences: list[Sentence] = []
        for level, label in cells * (count // len(cells)):
            text = _text(rng, level, bool(label))
            while text in seen:
                text = _text(rng, level, bool(label))
            seen.add(text)
            sentences.append(Sentence(text, label, level))
        rng.shuffle(sentences)
        sets.append(sentences)
    return tuple(sets)


def _text(rng: random.Random, level: int, praise: bool) -> str:
    first, second = (f"the {noun}" for noun in rng.sample(rng.choice(TOPICS), 2))
    if level <= 2:
        text = (_plain, _negated)[level - 1](rng, first, praise)
    else:
        clauses = {3: rng.sample([_plain, _negated], 2), 4: [_negated, _negated], 5: [_nested, _nested]}[level]
        yields, decides = clauses[0](rng, first, not praise), clauses[1](rng, second, praise)
        text = rng.choice(CONTRASTS).format(yields=yields, decides=decides)
    return f"{text[0].upper()}{text[1:]}."


def _plain(rng: random.Random, it: str, praise: bool, forms: tuple[str, ...] = PLAIN) -> str:
    return rng.choice(forms).format(it=it, so=rng.choice(PRAISE if praise else BLAME))


def _negated(rng: random.Random, it: str, praise: bool) -> str:
    reverses = rng.random() < 0.5
    return _plain(rng, it, praise != reverses, REVERSING if reverses else KEEPING)


def _nested(rng: random.Random, it: str, praise: bool) -> str:
    return _framed(rng, it, praise, frames=rng.choice((1, 2)))


def _framed(rng: random.Random, it: str, praise: bool, frames: int) -> str:
    if frames == 0:
        # Only forms that reverse: the others state a fact, which an outer negation does not change.
        return _plain(rng, it, not praise, REVERSING)
    reverses = rng.random() < 0.5
    inner = _framed(rng, it, praise != reverses, frames - 1)
    return rng.choice(REVERSING_FRAMES if reverses else KEEPING_FRAMES).format(clause=inner)
