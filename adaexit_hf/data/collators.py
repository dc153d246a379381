"""A collator for rows with token depths."""

from typing import Any

import torch
from transformers import DataCollatorWithPadding

from ..models.batching import token_column


class DataCollatorWithTokenDepths(DataCollatorWithPadding):
    """Pads `token_depths` along with the rest; for training on what `estimate_depths_by_reconstruction` returns."""

    def __call__(self, features: list[dict[str, Any]]) -> Any:
        """Rows -> padded tensors; depths are padded with 0 on the tokenizer's side.

        Raises:
            ValueError: as many depths as tokens are needed.
        """
        rest = [{name: value for name, value in feature.items() if name != "token_depths"} for feature in features]
        batch = super().__call__(rest)
        if "token_depths" not in features[0]:
            return batch
        width, left = batch["input_ids"].shape[1], self.tokenizer.padding_side == "left"
        rows = []
        for feature in features:
            depths = token_column(feature, "token_depths")
            gap = [0] * (width - len(depths))
            rows.append(gap + depths if left else depths + gap)
        batch["token_depths"] = torch.tensor(rows)
        return batch
