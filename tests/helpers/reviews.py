"""Made-up film reviews: their words, an encoder that knows them, and data files of them."""

import csv
from collections.abc import Sequence
from pathlib import Path

from helpers.tiny import encoder
from helpers.words import new_tokenizer

WORDS = ["good", "bad", "film", "book", "very"]


def save_encoder(folder: Path, words: Sequence[str] = WORDS, positions: int = 32, lowercase: bool = False) -> str:
    """Save a pretrained encoder with a tokenizer that knows `words` and `[MASK]`; its folder."""
    tokenizer = new_tokenizer(["[MASK]", *words], model_max_length=positions, lowercase=lowercase)
    tokenizer.save_pretrained(folder)
    size = max(len(tokenizer), 64)
    encoder("bert", vocab_size=size, max_position_embeddings=positions).save_pretrained(folder)
    return str(folder)


def write_csv(folder: Path, name: str, rows: int, labels: list) -> str:
    texts = [f"very {'good' if index % 2 else 'bad'} film" for index in range(rows)]
    values = [labels[index % len(labels)] for index in range(rows)]
    path = folder / f"{name}.csv"
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("text", "label"), *zip(texts, values, strict=True)])
    return str(path)
