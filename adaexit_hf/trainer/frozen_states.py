"""Hidden states of a frozen encoder, computed once and reused in every epoch.

The encoder runs once over every row, in eval mode, in batches of similar length that are divided among the processes.
The batches depend only on the data set: a run that is resumed, or has more processes, gets bit for bit the same
states. States keep the dtype in which the encoder returns them, also under autocast, so that exits read the same
values as if the encoder ran in every step.
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
from transformers.utils import logging

from ..data.batches_by_length import MOST_ROWS, chunks, fetch_rows, groups, length_of
from ..models.padded_batches import eval_mode, model_inputs, progress_bar
from ..utils.processor import default_batch_tokens

logger = logging.get_logger(__name__)


class NoRoomError(RuntimeError):
    """Neither memory nor the disk has enough room for the states."""


class FrozenStates:
    """The vectors that the exits read of every row: one for each exit, or one for each token and exit.

    Args:
        rows: number of rows.
        file: where the states go if they take more than `memory` bytes. An existing file is overwritten and never
            read, because a process that was killed may have written only a part of it.
        memory: largest size of the states in memory, in bytes.
        writes: whether this process writes the file; the other processes of its machine map it into memory.
        all_tokens: whether the exits read the states of all tokens.
    """

    def __init__(self, rows: int, file: Path, memory: int, writes: bool, all_tokens: bool) -> None:
        self.file, self.memory, self.writes, self.all_tokens = file, memory, writes, all_tokens
        # Where the vectors of each row start, and how many there are.
        self._first, self._count = torch.zeros(2, rows, dtype=torch.long).unbind()
        self._parts: list[Tensor] = []
        self._values = torch.empty(0)  # (vectors, exits, hidden)
        self._vectors = 0
        self._open: Any = None
        self.seconds = 0.0  # computing time

    def reserve(self, size: int) -> None:
        """Decide whether the states are kept in memory or in the file.

        Args:
            size: expected size of all states in bytes; all processes must pass the same number.

        Raises:
            NoRoomError: if they do not fit into memory and on the disk.
        """
        if size <= self.memory:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        # The smallest of all machines, so that all processes decide the same.
        free = min(gather_object([shutil.disk_usage(self.file.parent).free]))
        if size > 0.9 * free:
            needed, available = (f"{count / 2**30:.1f} GiB" for count in (size, free))
            raise NoRoomError(f"they take {needed}, and '{self.file.parent}' has {available} left")
        self._open = self.file.open("wb") if self.writes else self.file

    def add(self, places: Sequence[int], counts: Tensor, states: Tensor) -> None:
        """Add the states of some rows.

        Args:
            places: indices of the rows in the data set.
            counts: number of vectors of each row, `(rows,)`.
            states: the vectors of all these rows, `(vectors, exits, hidden)`.
        """
        self._first[list(places)] = self._vectors + counts.cumsum(0) - counts
        self._count[list(places)] = counts
        self._vectors += len(states)
        if self._open is None:
            self._parts.append(states)
            return
        self._parts = [states[:0]]  # `finish` needs the shape and dtype
        if self.writes:
            states.contiguous().view(torch.uint8).numpy().tofile(self._open)

    def finish(self, wait: Callable[[], None]) -> None:
        """Call this after the last `add`; `wait` waits until all processes have called it."""
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
        logger.info(f"the encoder is frozen: saved its states of {len(self._count)} rows, {size:.0f} MiB, in {where}")

    def batch(self, places: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """The argument `exit_states` of the model's forward for one batch, on the device of `places`.

        Args:
            places: indices of the batch's rows in the data set, `(batch,)`.
            inputs: the collated batch.
        """
        rows = places.cpu()
        slices = zip(self._first[rows].tolist(), self._count[rows].tolist(), strict=True)
        states = torch.cat([self._values[first : first + count] for first, count in slices]).to(places.device)
        if not self.all_tokens:
            return states
        mask = token_mask(inputs)
        padded = states.new_zeros(*mask.shape, *states.shape[1:])  # (batch, tokens, exits, hidden)
        padded[mask] = states
        return padded

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
    """Run the encoder once over a data set; several processes share the rows, and each gets all states.

    Args:
        model: a model with `takes_exit_states`, on its device.
        dataset: a data set with a length that gives the same rows every time.
        collate: makes a batch from rows.
        accelerator: the accelerator of the training.
        file: as for `FrozenStates`; the number of the machine's first process is appended to its name.
        memory: as for `FrozenStates`.
        progress: whether to show a progress bar.

    Raises:
        NoRoomError: if the states do not fit into memory and on the disk.
    """
    size, batch_tokens = len(dataset), default_batch_tokens(model.device, model.dtype)
    lengths = [length_of(row) for places in chunks(range(size), MOST_ROWS) for row in fetch_rows(dataset, places)]
    weights = lengths if model.reads_all_tokens else [1] * size
    file = file.with_name(f"{file.name}-{accelerator.process_index - accelerator.local_process_index}")
    states = FrozenStates(size, file, memory, accelerator.is_local_main_process, model.reads_all_tokens)
    reserved, start = False, time.monotonic()
    try:
        with (
            eval_mode(model),
            progress_bar(total=size, desc="Running the frozen encoder", disable=not progress) as bar,
        ):
            for batches in chunks(groups(lengths, MOST_ROWS, batch_tokens), accelerator.num_processes):
                encoded = []
                if accelerator.process_index < len(batches):
                    places = batches[accelerator.process_index]
                    batch = collate(fetch_rows(dataset, places))
                    with torch.inference_mode(), accelerator.autocast():
                        encoded = [(places, *_encode(model, batch))]
                if accelerator.num_processes > 1:
                    encoded = gather_object(encoded)
                for places, counts, vectors in encoded:
                    if not reserved:
                        share = sum(weights[place] for place in places) / sum(weights)
                        states.reserve(int(vectors.nbytes / share))
                        reserved = True
                    states.add(places, counts, vectors)
                    bar.update(len(places))
        states.finish(accelerator.wait_for_everyone)
        states.seconds = time.monotonic() - start
    except BaseException:
        states.close()
        raise
    return states


def _encode(model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The number of vectors of each row, `(rows,)`, and the vectors, `(vectors, exits, hidden)`, on the CPU."""
    states = model.states_for_exits(model_inputs(model, batch))
    if not model.reads_all_tokens:
        return torch.ones(len(states), dtype=torch.long), states.cpu()
    mask = token_mask(batch).to(states.device)
    return mask.sum(dim=1).cpu(), states[mask].cpu()


def token_mask(inputs: Mapping[str, Tensor]) -> Tensor:
    """True for tokens, False for padding; bool, `(batch, tokens)`."""
    if inputs.get("attention_mask") is not None:
        return inputs["attention_mask"].bool()
    tokens = inputs["input_ids"] if "input_ids" in inputs else inputs["inputs_embeds"]
    return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)


class RowsWithPlaces(Dataset[Any]):
    """A data set whose rows come with their indices."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, places: list[int]) -> list[tuple[int, Any]]:
        return list(zip(places, fetch_rows(self.rows, places), strict=True))


class CollatorWithPlaces:
    """A collator for `RowsWithPlaces`: adds the indices of the rows to the batch, as `exit_states`.

    `EarlyExitTrainer.compute_loss` replaces them by the states, so that data loader workers and processes only
    exchange indices, not states.
    """

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, features: list[tuple[int, Any]]) -> Any:
        batch = self.collate([row for _, row in features])
        batch["exit_states"] = torch.tensor([place for place, _ in features])
        return batch
