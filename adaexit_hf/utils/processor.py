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
