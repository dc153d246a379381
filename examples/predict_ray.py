"""Classify the texts in Parquet files of any size with Ray Data, on one machine or a cluster (extra `ray`).

    python examples/predict_ray.py --model_name_or_path out --input data --output_dir answers --workers 2

Each file gives one of the same name with the same rows in the same order: its own columns, and logits, label,
exit_layer and exit_score. It gets its name when it is whole, and what is there is not made again: the same command
goes on where it was stopped; another model or threshold wants another folder. A cluster's machines see the same files.
"""

import argparse
import glob
import itertools
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from adaexit_hf import predict
from adaexit_hf.evaluation.trace import predictions
from adaexit_hf.models.configuration_early_exit import EarlyExitConfig

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import ray.data
except ImportError as error:
    raise ImportError("ray: not installed; pip install adaexit_hf[ray]") from error

# Rows of one call of `predict`. A worker reads the whole row group that they are of: little work beside the model's.
ROWS = 16384


class Predictor:
    """A worker: loads the model once, and answers one piece of a file after the other."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.set_num_threads(max(1, int(options.cpus_per_worker)))
        model = AutoModelForSequenceClassification.from_pretrained(options.model_name_or_path)
        self.model = model.to("cuda" if options.gpus_per_worker else "cpu")
        self.tokenizer = AutoTokenizer.from_pretrained(options.model_name_or_path)
        self.options = options

    def __call__(self, pieces: dict[str, Any]) -> pa.Table:
        file, group, start, rows = (pieces[name].item() for name in ("file", "group", "start", "rows"))
        with pq.ParquetFile(file) as source:
            table = source.read_row_group(group).slice(start, rows)
        texts = [table[name].to_pylist() for name in self.options.text_columns]
        if any(None in column for column in texts):
            raise ValueError(f"text_columns: '{file}' has rows without a text; drop them, or fill in a text")
        settings = {name: getattr(self.options, name) for name in ("exit_threshold", "batch_tokens")}
        answers = predict(self.model, list(zip(*texts, strict=True)), self.tokenizer, progress=False, **settings)
        config, label = self.model.config, predictions(answers.logits).tolist()
        label = label if config.num_labels == 1 else [config.id2label[number] for number in label]
        columns = (answers.logits.tolist(), label, answers.exit_layer.tolist(), answers.exit_score.tolist())
        for field, values in zip(answer_fields(config, self.options.prefix), columns, strict=True):
            table = table.append_column(field, pa.array(values, field.type))
        return table


def answer_fields(config: EarlyExitConfig, prefix: str) -> list[pa.Field]:
    """The columns that are added; the label of a regression is its number."""
    label = pa.float32() if config.num_labels == 1 else pa.string()
    types = {"logits": pa.list_(pa.float32()), "label": label, "exit_layer": pa.int32(), "exit_score": pa.float32()}
    return [pa.field(prefix + name, kind) for name, kind in types.items()]


def outputs_of(pattern: str, output_dir: str) -> dict[str, Path]:
    """Every input with its output, which lies in `output_dir` as the input does in the part without wildcards."""
    root = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), Path(pattern).parent.parts))
    if Path(pattern).is_dir():
        root, pattern = Path(pattern), f"{glob.escape(pattern)}/**/*.parquet"
    found = [Path(file).absolute() for file in sorted(glob.glob(pattern, recursive=True))]
    own = Path(output_dir).absolute()
    if not (found := [file for file in found if own not in file.parents]):  # outputs may lie among the inputs
        raise ValueError(f"input: no file is '{pattern}'; pass a folder with .parquet files, a file or a pattern")
    return {str(file): own / file.relative_to(root.absolute()) for file in found}


def plan(file: str, options: argparse.Namespace, fields: list[pa.Field]) -> tuple[pa.Schema, list[dict[str, Any]]]:
    """The columns of the output, and the pieces of the input: up to `ROWS` rows of a row group."""
    metadata = pq.read_metadata(file)
    schema, pieces = metadata.schema.to_arrow_schema(), []
    for name in options.text_columns:
        if name not in schema.names:
            raise ValueError(f"text_columns: '{file}' has no column '{name}'; it has {', '.join(schema.names)}")
    for field in fields:
        if field.name in schema.names:
            raise ValueError(f"input: '{file}' has a column '{field.name}'; pass --prefix, e.g. --prefix predicted_")
        schema = schema.append(field)
    for group, size in enumerate(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)):
        for start in range(0, size, ROWS):
            pieces.append({"file": file, "group": group, "start": start, "rows": min(ROWS, size - start)})
    return schema, pieces


def answered(pieces: list[dict[str, Any]], options: argparse.Namespace) -> Iterator[pa.Table]:
    """The pieces with their answers, in order, in one table or several."""
    ray.init(ignore_reinit_error=True)
    wanted, there = options.workers * options.cpus_per_worker, ray.cluster_resources().get("CPU", 0)
    if wanted > there:
        warnings.warn(f"workers: they want {wanted:g} CPUs, Ray has {there:g}; the others wait for more", stacklevel=2)
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    # Ray's own reader wants a CPU besides the workers'. Where they have all, it would wait for ever.
    tables = ray.data.from_items(pieces, override_num_blocks=len(pieces)).map_batches(
        Predictor, batch_size=1, compute=ray.data.ActorPoolStrategy(size=options.workers),
        fn_constructor_args=(options,), num_cpus=options.cpus_per_worker, num_gpus=options.gpus_per_worker,
    )  # fmt: skip
    yield from tables.iter_batches(batch_size=None, batch_format="pyarrow")


def main(argv: Sequence[str] | None = None) -> None:
    """Make the outputs that are not there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True, help="checkpoint with exits, Hub name or folder")
    parser.add_argument("--input", required=True, help="Parquet files: a folder, or a quoted pattern")
    parser.add_argument("--output_dir", required=True, help="gets one file for every input")
    parser.add_argument("--text_columns", nargs="+", default=["text"], help="one column, or two of pairs")
    parser.add_argument("--exit_threshold", type=float, help="default: the checkpoint's")
    parser.add_argument("--workers", type=int, default=1, help="processes with a model each")
    parser.add_argument("--cpus_per_worker", type=float, default=1, help="also its threads")
    parser.add_argument("--gpus_per_worker", type=float, default=0, help="0.5: two share one; 0: on the CPU")
    parser.add_argument("--batch_tokens", type=int, help="tokens of a batch, as for `predict`")
    parser.add_argument("--prefix", default="", help="of the names of the added columns")
    options = parser.parse_args(argv)
    config = AutoConfig.from_pretrained(options.model_name_or_path)
    if options.exit_threshold is not None:
        config.thresholds(options.exit_threshold)  # a bad one fails here, not in a worker
    elif config.own_thresholds() is None:
        print("exit_threshold: none is given, and the checkpoint has none: full depth is run")
    files = outputs_of(options.input, options.output_dir)
    todo = {file: output for file, output in files.items() if not output.exists()}
    print(f"{len(files) - len(todo)} of {len(files)} files are there already")
    plans = {file: plan(file, options, answer_fields(config, options.prefix)) for file in todo}
    tables = answered([piece for _, pieces in plans.values() for piece in pieces], options)
    for file, output in todo.items():
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary, missing = output.with_name(f"{output.name}.tmp"), pq.read_metadata(file).num_rows
        with pq.ParquetWriter(temporary, plans[file][0]) as writer:
            while missing > 0:
                writer.write_table(table := next(tables))
                missing -= len(table)
        if missing < 0:  # the next file would lack them
            raise RuntimeError(f"answers: {-missing} rows more than '{output.name}' has; report it with Ray's version")
        temporary.replace(output)


if __name__ == "__main__":
    main()
