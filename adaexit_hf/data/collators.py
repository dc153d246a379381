"""A collator for rows with token depths."""

from typing import Any

import torch
from transformers import DataCollatorWithPadding

from ..models.padded_batches import token_column


class DataCollatorWithTokenDepths(DataCollatorWithPadding):
    """Transformers' `DataCollatorWithPadding` that also pads the column `token_depths`.

    It is for training on the depths that `estimate_depths_by_reconstruction` adds to a data set. `EarlyExitTrainer`
    uses it by default if it has a tokenizer. Its arguments are those of `DataCollatorWithPadding`: `tokenizer`,
    `padding`, `max_length`, `pad_to_multiple_of` and `return_tensors`, which must be "pt" with `token_depths`. Depths
    are padded on the same side as the tokens.

    Examples:
        >>> from transformers import BertTokenizer
        >>> tokenizer = BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "good": 4, "film": 5})
        >>> short = {"input_ids": [2, 4, 3], "token_depths": [1, 2, 1]}
        >>> long = {"input_ids": [2, 4, 5, 3], "token_depths": [1, 2, 4, 1]}
        >>> DataCollatorWithTokenDepths(tokenizer)([short, long])["token_depths"].tolist()
        [[1, 2, 1, 0], [1, 2, 4, 1]]
    """

    def __call__(self, features: list[dict[str, Any]]) -> Any:
        """Pad rows to one batch.

        Args:
            features: rows with `input_ids` and other columns; all or none have `token_depths`.

        Returns:
            The padded columns as tensors of shape `(batch, tokens)`; depths are padded with 0.

        Raises:
            ValueError: if a row does not have one depth per token.
        """
        without_depths = [
            {name: value for name, value in feature.items() if name != "token_depths"} for feature in features
        ]
        batch = super().__call__(without_depths)
        if "token_depths" not in features[0]:
            return batch
        width, left = batch["input_ids"].shape[1], self.tokenizer.padding_side == "left"
        rows = []
        for feature in features:
            depths = token_column(feature, "token_depths")
            padding = [0] * (width - len(depths))
            rows.append(padding + depths if left else depths + padding)
        batch["token_depths"] = torch.tensor(rows)
        return batch
