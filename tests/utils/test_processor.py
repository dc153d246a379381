"""Tests of `default_batch_tokens`."""

import pytest
import torch

from adaexit_hf.utils.processor import default_batch_tokens


@pytest.mark.parametrize(
    ("device", "dtype", "amx", "tokens"),
    [
        ("cpu", torch.float32, True, 1024),
        ("cpu", torch.bfloat16, True, 2048),
        ("cpu", torch.bfloat16, False, 1024),
        ("cuda", torch.float32, True, 16384),
    ],
)
def test_batch_tokens_depend_on_device_dtype_and_amx(
    device: str, dtype: torch.dtype, amx: bool, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)

    assert default_batch_tokens(torch.device(device), dtype) == tokens
