"""States of a frozen encoder, computed once and read in every epoch.

Every row is run once, in eval mode, in batches of similar length, which the processes share. The batches depend on the
data set alone: a run that is resumed, or has more processes, gets the same states bit for bit. They have the dtype in
which the encoder gives them, under autocast, too: exits read what they would have read.
"""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers.utils import logging

from ..data.batching import MOST_ROWS, chunks, fetched, groups, length_of
from ..models.batching import eval_mode, model_inputs

logger = logging.get_logger(__name__)


class NoRoomError(RuntimeError):
    """Neither memory nor disk holds the states."""


class FrozenStates:
    """What the exits read of every row: a vector for each exit, or for each token and exit.

    Args:
        rows: their number.
        file: where states go that take more than `memory` bytes. What lies there is overwritten and never read, since
            a process that was killed may have written half of it.
        writes: is this the process of its machine that writes? The others map the same file.
        all_tokens: do exits read all tokens?
    """

    def __init__(self, rows: int, file: Path, memory: int, writes: bool, all_tokens: bool) -> None:
        self.file, self.memory, self.writes, self.all_tokens = file, memory, writes, all_tokens
        self._first, self._count = torch.zeros(2, rows, dtype=torch.long).unbind()  # of each row's vectors
        self._parts: list[Tensor] = []
        self._values = torch.empty(0)  # (vectors, exits, hidden)
        self._vectors = 0
        self._open: Any = None
        self.seconds = 0.0  # that it took to compute them

    def reserve(self, expected: int) -> None:
        """Decide where so many bytes go; all processes call it with the same number.

        Raises:
            NoRoomError: the disk is too full.
        """
        if expected <= self.memory:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        free = min(gather_object([shutil.disk_usage(self.file.parent).free]))  # the same everywhere, so that all agree
        if expected > 0.9 * free:
            size, left = (f"{each / 2**30:.1f} GiB" for each in (expected, free))
            raise NoRoomError(f"they take {size}, and '{self.file.parent}' has {left} left")
        self._open = self.file.open("wb") if self.writes else self.file

    def add(self, places: Sequence[int], counts: Tensor, states: Tensor) -> None:
        """The states (vectors, exits, hidden) of rows with so many vectors, (rows,)."""
        self._first[list(places)] = self._vectors + counts.cumsum(0) - counts
        self._count[list(places)] = counts
        self._vectors += len(states)
        if self._open is None:
            self._parts.append(states)
            return
        self._parts = [states[:0]]  # for its shape
        if self.writes:
            states.contiguous().view(torch.uint8).numpy().tofile(self._open)

    def finish(self, wait: Callable[[], None]) -> None:
        """All rows are there; `wait` is for the other processes."""
        self._values = torch.cat(self._parts)
        self._parts = []
        if self._open is not None:
            if self.writes:
                self._open.close()
            wait()
            shape, dtype = (self._vectors, *self._values.shape[1:]), self._values.dtype
            self._values = torch.from_file(str(self.file), size=torch.Size(shape).numel(), dtype=dtype).view(shape)
        where = "memory" if self._open is None else f"'{self.file}'"
        size = self._values.nbytes / 2**20
        logger.info(f"the encoder is frozen: kept its states of {len(self._count)} rows, {size:.0f} MiB, in {where}")

    def batch(self, places: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """`exit_states` for the model's forward, on the device of `places`.

        Args:
            places: rows of the batch, (batch,).
            inputs: what the collator made of them.
        """
        rows = places.cpu()
        slices = zip(self._first[rows].tolist(), self._count[rows].tolist(), strict=True)
        states = torch.cat([self._values[first : first + count] for first, count in slices]).to(places.device)
        if not self.all_tokens:
            return states
        mask = token_mask(inputs)
        whole = states.new_zeros(*mask.shape, *states.shape[1:])  # (batch, tokens, exits, hidden)
        whole[mask] = states
        return whole

    def close(self) -> None:
        """Remove the file."""
        self._values = torch.empty(0)
        if self._open is not None and self.writes:
            self._open.close()
            self.file.unlink(missing_ok=True)


def frozen_states(
    model: Any,
    dataset: Any,
    collate: Callable[[list[Any]], Mapping[str, Tensor]],
    accelerator: Accelerator,
    file: Path,
    memory: int,
    progress: bool = True,
) -> FrozenStates:
    """Run the encoder once over a data set; under several processes each has a share, and gets all states.

    Args:
        model: one with `takes_exit_states`, on its device.
        dataset: with a length; the same rows every time.
        collate: makes a batch of rows.
        file, memory: as for `FrozenStates`; the file's name gets the number of the machine's first process.
        progress: show a bar.

    Raises:
        NoRoomError: the states are too large for memory and disk.
    """
    size, batch_tokens = len(dataset), 1024 if model.device.type == "cpu" else 16384
    lengths = [length_of(row) for places in chunks(range(size), MOST_ROWS) for row in fetched(dataset, places)]
    weights = lengths if model.reads_all_tokens else [1] * size
    file = file.with_name(f"{file.name}-{accelerator.process_index - accelerator.local_process_index}")
    states = FrozenStates(size, file, memory, accelerator.is_local_main_process, model.reads_all_tokens)
    reserved, began = False, time.monotonic()
    try:
        with eval_mode(model), tqdm(total=size, desc="Running the frozen encoder", disable=not progress) as bar:
            for batches in chunks(groups(lengths, MOST_ROWS, batch_tokens), accelerator.num_processes):
                found = []
                if accelerator.process_index < len(batches):
                    places = batches[accelerator.process_index]
                    batch = collate(fetched(dataset, places))
                    with torch.inference_mode(), accelerator.autocast():
                        found = [(places, *_encoded(model, batch))]
                for places, counts, vectors in gather_object(found) if accelerator.num_processes > 1 else found:
                    if not reserved:
                        share = sum(weights[place] for place in places) / sum(weights)
                        states.reserve(int(vectors.nbytes / share))
                        reserved = True
                    states.add(places, counts, vectors)
                    bar.update(len(places))
        states.finish(accelerator.wait_for_everyone)
        states.seconds = time.monotonic() - began
    except BaseException:
        states.close()
        raise
    return states


def _encoded(model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """How many vectors each row has, (rows,), and the vectors, (vectors, exits, hidden), on the CPU."""
    states = model.states_for_exits(model_inputs(model, batch))
    if not model.reads_all_tokens:
        return torch.ones(len(states), dtype=torch.long), states.cpu()
    mask = token_mask(batch).to(states.device)
    return mask.sum(dim=1).cpu(), states[mask].cpu()


def token_mask(inputs: Mapping[str, Tensor]) -> Tensor:
    """Which places of a batch are no pads, bool (batch, tokens)."""
    if inputs.get("attention_mask") is not None:
        return inputs["attention_mask"].bool()
    seen = inputs["input_ids"] if "input_ids" in inputs else inputs["inputs_embeds"]
    return torch.ones(seen.shape[:2], dtype=torch.bool, device=seen.device)


class RowsWithPlaces(Dataset[Any]):
    """Each row of a data set with its place."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, places: list[int]) -> list[tuple[int, Any]]:
        return list(zip(places, fetched(self.rows, places), strict=True))


class CollatorWithPlaces:
    """A collator for them; the batch carries the rows' places as `exit_states`, for which the trainer puts the states.

    So workers and processes hand on numbers, and the states stay where they are.
    """

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, features: list[tuple[int, Any]]) -> Any:
        batch = self.collate([row for _, row in features])
        batch["exit_states"] = torch.tensor([place for place, _ in features])
        return batch
