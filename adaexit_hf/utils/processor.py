"""What the processor can do, where it decides how fast a model runs."""

import platform

import torch


def bf16_is_slow(device: torch.device) -> bool:
    """Return whether a device computes in bfloat16 several times slower than in float32: a CPU without units for it.

    Of other processors than x86 nothing is known; for them it is False.

    Args:
        device: The device.
    """
    x86 = platform.machine() in ("x86_64", "AMD64")
    return device.type == "cpu" and x86 and not torch.cpu._is_avx512_bf16_supported()


def default_batch_tokens(device: torch.device, dtype: torch.dtype) -> int:
    """Return how many tokens a batch of `predict` has by default.

    A batch has a fixed cost, mostly of the weights that every matrix product reads and reorders. It counts more the
    faster a machine computes: on a CPU with AVX2 in float32 it is that of 70 to 90 tokens, with AMX of several times
    as many.

    Args:
        device: Device of the model.
        dtype: Dtype of the weights.

    Examples:
        >>> default_batch_tokens(torch.device("cpu"), torch.float32)
        1024
    """
    if device.type != "cpu":
        return 16384
    amx = torch.cpu._is_amx_tile_supported()
    return 2048 if amx and dtype in (torch.bfloat16, torch.float16) else 1024
