"""How many layers a word needs, from its mutual information with the labels. Liu et al., AAAI 2021, Eq. 2 and 3.

This file travels inside checkpoints: see CONTRIBUTING.md, "The shipped folder".
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


def mutual_information(counts: Tensor, smoothing: float = 0.1) -> Tensor:
    """Mutual information of a word's presence with each label, summed over the labels, in nats, >= 0. Eq. 2.

    `smoothing` is added to each of the four joint counts (word present or not, label given or not), and the marginals
    are those of the smoothed counts, so that the result is a mutual information, never negative.

    Args:
        counts: how many texts of each label have the word, (words + 1, labels); the last row is for all texts.

    >>> counts = torch.tensor([[4, 0], [2, 2], [4, 4]])  # two words, eight texts
    >>> [round(value, 4) for value in mutual_information(counts).tolist()]
    [1.1613, 0.0]
    """
    with_word, totals = counts[:-1].double(), counts[-1].double()
    texts, present = totals.sum(), with_word.sum(dim=1, keepdim=True)
    joint = torch.stack(
        [with_word, present - with_word, totals - with_word, texts - present - totals + with_word]
    ).reshape(2, 2, *with_word.shape)  # (present or not, label or not, words, labels)
    joint = joint + smoothing
    joint = joint / joint.sum(dim=(0, 1))
    product = joint.sum(dim=1, keepdim=True) * joint.sum(dim=0, keepdim=True)
    return torch.special.xlogy(joint, joint / product).sum(dim=(0, 1, 3)).clamp_min(0)


def binned_depths(information: Tensor, depth: int) -> Tensor:
    """Depths 1..depth: much information, few layers. -log(information) in bins of equal width; section 2.1.

    A word with no information at all has -log 0 = infinity, and one with hardly any would stretch the bins until all
    others share one. So the bins end at the 0.99 quantile; what lies beyond is in the last one.

    Args:
        information: in nats, (words,), of words that occur.

    >>> binned_depths(torch.tensor([0.5, 0.05, 0.005, 0.0]), depth=3).tolist()
    [1, 2, 3, 3]
    """
    scaled = -information.double().clamp_min(torch.finfo(torch.float64).tiny).log()
    informed = scaled[information > 1e-12]
    if not len(informed):
        return torch.full_like(information, depth, dtype=torch.long)
    low, high = informed.min(), informed.quantile(0.99)
    width = (high - low).clamp_min(torch.finfo(torch.float64).tiny) / depth
    return ((scaled - low) / width).clamp(0, depth - 1).long() + 1


def mutual_information_depths(
    texts: Sequence[Sequence[int]],
    labels: Sequence[int],
    vocab_size: int,
    depth: int,
    special_ids: Iterable[int] = (),
    smoothing: float = 0.1,
) -> Tensor:
    """Depth of every word of the vocabulary, (vocabulary,), in 1..depth.

    Words that do not occur get the deepest layer. Special tokens, and those that every text has, get the first: the
    deepest word decides how many layers run, and these say nothing about the label.

    Raises:
        ValueError: no texts, or all of one class; a word beyond the vocabulary.
    """
    classes = sorted(set(labels))
    if len(classes) < 2:
        raise ValueError(
            f"dataset: got {len(texts)} texts with {len(classes)} classes; mutual information needs at least two "
            "classes, pass the whole training set"
        )
    highest = max((max(text) for text in texts if len(text)), default=0)
    if highest >= vocab_size:
        raise ValueError(
            f"dataset: has the token {highest}, but the encoder's vocabulary has {vocab_size}; tokenize with "
            "its tokenizer"
        )
    counts = torch.zeros(vocab_size + 1, len(classes), dtype=torch.float64)
    for text, label in zip(texts, labels, strict=True):
        column = classes.index(label)
        counts[list(set(text)), column] += 1
        counts[-1, column] += 1
    present = counts[:-1].sum(dim=1)
    found = present > 0
    depths = torch.full((vocab_size,), depth)
    rows = torch.cat([found, found.new_ones(1)])
    depths[found] = binned_depths(mutual_information(counts[rows], smoothing), depth)
    depths[present == len(texts)] = 1
    depths[[token for token in special_ids if token < vocab_size]] = 1
    return depths


class DepthTable(nn.Module):
    """Depth of every word piece, (vocabulary,), floats, never trained; 0, not estimated, stands for the last layer."""

    def __init__(self, vocab_size: int, depth: int) -> None:
        super().__init__()
        self.depth = depth
        self.weight = nn.Parameter(torch.zeros(vocab_size), requires_grad=False)

    @property
    def estimated(self) -> bool:
        """Has any word a depth?"""
        return bool(self.weight.any())

    @torch.no_grad()
    def resize(self, vocab_size: int) -> None:
        """Cut the table, or add words of the deepest layer."""
        grown = self.weight.new_zeros(vocab_size)
        kept = min(vocab_size, len(self.weight))
        grown[:kept] = self.weight[:kept]
        self.weight = nn.Parameter(grown, requires_grad=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """(batch, tokens) -> depths (batch, tokens), long; a word that the table lacks gets the deepest layer."""
        depths = self.weight[input_ids.clamp(max=len(self.weight) - 1)].round().long()
        return torch.where((input_ids < len(self.weight)) & (depths > 0), depths, self.depth)
