"""Models are built once and copied: building takes ten times longer, and most tests start with it."""

import io
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Made = tuple[bytes, list[Tensor], Tensor]
MADE: dict[bytes, Made] = {}


class Writer(pickle.Pickler):
    """Leaves tensors out: each is a place in a list."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.tensors: list[Tensor] = []
        self.places: dict[int, int] = {}

    def persistent_id(self, part: Any) -> int | None:
        if not isinstance(part, Tensor):
            return None
        if id(part) not in self.places:
            self.places[id(part)] = len(self.tensors)
            self.tensors.append(part)
        return self.places[id(part)]


class Reader(pickle.Unpickler):
    """Puts a copy into each place, one for all that share it."""

    def __init__(self, file: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(file)
        self.copies = [copied(tensor) for tensor in tensors]

    def persistent_load(self, place: int) -> Tensor:
        return self.copies[place]


def copied(tensor: Tensor) -> Tensor:
    copy = tensor.detach().clone()
    return nn.Parameter(copy, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copy


def copy_of(make: Callable[..., nn.Module], *arguments: Any, **options: Any) -> Any:
    """What `make` gives, made once for the same arguments; torch's generator goes on from where `make` left it."""
    key = pickle.dumps((make, arguments, options))
    if key not in MADE:
        model, file = make(*arguments, **options), io.BytesIO()
        writer = Writer(file)
        writer.dump(model)
        MADE[key] = file.getvalue(), writer.tensors, torch.get_rng_state()
    written, tensors, state = MADE[key]
    torch.set_rng_state(state)
    return Reader(io.BytesIO(written), tensors).load()
