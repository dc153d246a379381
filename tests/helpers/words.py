"""A word-level tokenizer for tiny models."""

from collections.abc import Sequence

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
NUMBERED = [f"w{number}" for number in range(4, 64)]  # each has the id of its number


def new_tokenizer(
    words: Sequence[str] = NUMBERED, model_max_length: int | None = 32, lowercase: bool = False
) -> PreTrainedTokenizerFast:
    """Special tokens have the ids 0 to 3, `words` those after them. `[MASK]` may be one of the words."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL.values(), *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    special = SPECIAL | ({"mask_token": "[MASK]"} if "[MASK]" in words else {})
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=model_max_length, **special)
