"""Train methods on data sets with several seeds, and print tables of what their exits cost and save.

    python benchmarks/compare_methods.py --datasets mrpc rte trec stsb --methods plain limit-3 deebert berxit \
        dact-bert         --model_name_or_path sentence-transformers/all-MiniLM-L6-v2 --exit_pooling mean --seeds 3 \
        --results results.jsonl --jobs 2 -- --bf16 --use_cpu

Every cell (data set, method, seed) is one run of `run_glue_exit.py` in a process of its own, and one line in the
results file. The same command continues where it was stopped: cells that have a line with the same settings are not
run again. Flags after `--` go to every run and replace the recipe below. Where a method does not apply, the tables
say `-`. Besides the methods of the package there are `plain` (no exits), `limit-K` (plain, the first K layers),
`layerdrop` (plain, any number of layers) and `static-K`, the first K layers with one exit, which reads as the methods
do (`--exit_pooling`). `'berxit:{"fine_tuning": "joint"}'` is a method with other settings, and
`plain@distilbert/distilbert-base-uncased` one on another encoder. For depths by reconstruction,
`'depth-adaptive:{"depth_source": "reconstruction"}'`, train a masked language model on each data set's texts before
(`depths_by_reconstruction.py --work_dir FOLDER/mrpc --masked_lm_only`), and pass `--token_depths FOLDER`.
`--traces FOLDER` also keeps what every exit of every run answered, for `ExitTrace.load` and `adaexit report`.
"""

import argparse
import hashlib
import itertools
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from comparison_tables import figures, is_regression, tables
from transformers import BertConfig

from adaexit_hf import METHODS
from adaexit_hf.data.tasks import TASKS

JOB = Path(__file__).parents[1] / "examples" / "run_glue_exit.py"
CONFIGS = {name: model.config_class for name, model in METHODS.items()}
Flags = dict[str, list[str]]
Key = tuple[str, str, tuple[str, ...]]

RECIPE = """
    --num_train_epochs 3 --per_device_train_batch_size 16 --learning_rate 5e-5 --warmup_steps 0.1
    --train_sampling_strategy group_by_length --per_device_eval_batch_size 64
    --report_to none --save_strategy no --disable_tqdm true
"""
# What one data set needs besides; the seeds share the rows that are set aside.
DATA_RECIPE = {
    "sst2": "--max_train_samples 10000",
    "imdb": "--max_train_samples 2500 --max_eval_samples 2500 --max_seq_length 256 --validation_fraction 0.1",
    "trec": "--validation_fraction 0.1",
}
# Where the Hub has what is not in GLUE. Two are loading scripts there, and scripts are not run any more.
HUB = {
    "imdb": "--dataset_name stanfordnlp/imdb",
    "mr": "--dataset_name cornell-movie-review-data/rotten_tomatoes",
    "sick": "--dataset_name RobZamp/sick --dataset_revision refs/convert/parquet "
    "--text_columns sentence_A sentence_B --label_column relatedness_score",
    "trec": "--dataset_name CogComp/trec --dataset_revision refs/convert/parquet --label_column coarse_label",
}
DATASETS = sorted({*TASKS, *HUB})


class Variant(NamedTuple):
    """What a row of the table means for `run_glue_exit.py`."""

    method: str
    config: dict[str, Any] = {}
    flags: str = ""
    encoder: str | None = None


# The methods that are not run with their defaults; the others need no entry.
VARIANTS = {
    "plain": Variant("plain"),
    "layerdrop": Variant("plain", flags="--layer_drop 0.2"),
    "dact-bert": Variant("dact-bert", {"halting_bias": 0, "ponder_cost": 0.005}),
    "deebert": Variant("deebert", flags='--stage_overrides {"exits":{"learning_rate":1e-3}}'),
    # Ten times the teacher's, as its authors.
    "fastbert": Variant("fastbert", flags='--stage_overrides {"distil":{"learning_rate":5e-4}}'),
    "right-tool": Variant("right-tool", flags="--calibrate"),
    "berxit-joint": Variant("berxit", {"fine_tuning": "joint"}),
    # Our own try at a better default; see benchmarks/RESULTS.md.
    "berxit-exits-1e-3": Variant("berxit", flags="--exits_learning_rate 1e-3"),
}


class Cell(NamedTuple):
    """One run. `settings` tell runs apart; `places` are the flags that say where its data and its encoder lie."""

    dataset: str
    method: str
    seed: int
    model: str
    settings: tuple[str, ...]
    places: tuple[str, ...]

    @property
    def key(self) -> Key:
        return self.dataset, self.model, self.settings

    def __str__(self) -> str:
        return f"{self.dataset} {self.method} seed {self.seed}"


def grouped(tokens: Iterable[str]) -> Flags:
    """Flags with their values; a later one replaces an earlier one.

    >>> grouped(["--bf16", "--seed=1", "--text_columns", "a", "b", "--seed", "2"])
    {'--bf16': [], '--seed': ['2'], '--text_columns': ['a', 'b']}
    """
    flags: Flags = {}
    name = None
    for token in tokens:
        if token.startswith("--"):
            name, equals, value = token.partition("=")
            flags[name] = [value] if equals else []
        elif name is None:
            raise ValueError(f"flags after --: got '{token}' first; start with a flag, e.g. -- --num_train_epochs 1")
        else:
            flags[name].append(token)
    return flags


def variant_of(name: str, exit_pooling: str | None = None) -> Variant:
    """What a name of `--methods` stands for.

    >>> variant_of("limit-3@some/encoder")
    Variant(method='plain', config={'num_hidden_layers': 3}, flags='', encoder='some/encoder')
    >>> variant_of("static-3", exit_pooling="mean").config
    {'num_hidden_layers': 3, 'exit_layers': [3], 'fine_tuning': 'joint', 'exit_pooling': 'mean'}
    >>> variant_of('berxit:{"fine_tuning": "joint"}', exit_pooling="mean").config
    {'exit_pooling': 'mean', 'fine_tuning': 'joint'}
    """
    row, _, config = name.partition(":")
    base, _, encoder = row.partition("@")
    fixed = re.fullmatch(r"(limit|static)-([1-9]\d*)", base)
    if fixed:
        layers = int(fixed[2])
        one_exit = {"exit_layers": [layers], "fine_tuning": "joint"} if fixed[1] == "static" else {}
        known = Variant("berxit" if one_exit else "plain", {"num_hidden_layers": layers} | one_exit)
    elif base in {*VARIANTS, *CONFIGS}:
        known = VARIANTS.get(base, Variant(base))
    else:
        names = ", ".join(sorted({*VARIANTS, *CONFIGS}))
        raise ValueError(f"methods: got '{base}'; choose from {names}, limit-3, static-3")
    pooling = {"exit_pooling": exit_pooling} if exit_pooling and known.method != "plain" else {}
    return known._replace(config=known.config | pooling | json.loads(config or "{}"), encoder=encoder or None)


def applies(variant: Variant, dataset: str) -> bool:
    """Is the method, with these settings, defined for the data set?

    >>> applies(variant_of("deebert"), "stsb"), applies(variant_of("berxit"), "stsb")
    (False, True)

    Raises:
        ValueError: the settings are wrong; what is right for classes only does not apply to a regression.
    """
    if variant.method == "plain":
        return True
    config = dict(variant.config)
    lists = [config["exit_layers"][-1]] if config.get("exit_layers") else []
    lists += [len(value) for value in config.values() if isinstance(value, list)]  # one number per exit
    encoder = BertConfig(num_hidden_layers=config.pop("num_hidden_layers", None) or (lists or [12])[0])

    def refusal(num_labels: int) -> Exception | None:
        try:
            CONFIGS[variant.method](encoder, num_labels=num_labels, **config)
        except (TypeError, ValueError) as error:
            return error
        return None

    if is_regression(dataset) and refusal(1) is None:
        return True
    wrong = refusal(2)
    if wrong is not None:
        raise ValueError(f"methods: {variant.method} with {json.dumps(variant.config)}: {wrong}")
    return not is_regression(dataset)


def by_reconstruction(variant: Variant) -> bool:
    return variant.config.get("depth_source") == "reconstruction"


def places_of(dataset: str, model: str, root: str | None) -> tuple[str, ...]:
    """The flags that say where the data and the encoder lie, and how the columns are called there."""
    columns = ["--task_name", dataset] if dataset in TASKS else ["--text_columns", "text"]
    hub = HUB.get(dataset, "").split()
    folder = ["--dataset_name", str(Path(root, dataset if hub else "glue"))] if root else hub
    return ("--model_name_or_path", model, *columns, *folder)


def cells_of(options: argparse.Namespace, more: Sequence[str] = ()) -> list[Cell]:
    """The runs of the tables, seed by seed, so that a stopped comparison has every method."""
    cells = []
    for seed, dataset, name in itertools.product(range(options.seeds), options.datasets, options.methods):
        variant = variant_of(name, options.exit_pooling)
        if applies(variant, dataset):
            flags = grouped([*RECIPE.split(), *DATA_RECIPE.get(dataset, "").split(), *variant.flags.split(), *more])
            flags |= {"--method": [variant.method], "--seed": [str(seed)]}
            if variant.config:
                flags["--method_config"] = [json.dumps(variant.config, sort_keys=True)]
            settings = tuple(token for flag in sorted(flags) for token in (flag, *flags[flag]))
            encoder = variant.encoder or options.model_name_or_path
            places = places_of(dataset, encoder, options.data_root)
            if by_reconstruction(variant):
                places += ("--token_depths_model", str(Path(options.token_depths, dataset, "masked-lm")))
            if options.traces:
                recipe = hashlib.sha256(" ".join((encoder, *settings)).encode()).hexdigest()[:8]
                name_of_run = re.sub(r"[^\w.-]+", "-", f"{dataset} {name} {seed} {recipe}")
                places += ("--save_traces", str(Path(options.traces, name_of_run)))
            model = "/".join(Path(encoder).parts[-2:])
            cells.append(Cell(dataset, name, seed, model, settings, places))
    return cells


def whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Every whole line of a results file, none where there is no file; warns of the others."""
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], start=1):
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            warnings.warn(f"{path}, line {number}: not a whole line, left out; its cell runs again", stacklevel=2)


def read_results(path: Path) -> dict[Key, dict[str, Any]]:
    """The lines of the results file, by the key of their cell."""
    return {(row["dataset"], row["model"], tuple(row["settings"])): row for row in whole_lines(path)}


def append_line(path: Path, row: dict[str, Any]) -> None:
    """One line, whole, on the disk when this returns; a half-written line before it stays one of its own."""
    with path.open("a+b") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        start = "\n" if file.read(1) not in (b"", b"\n") else ""
        file.write((start + json.dumps(row) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())


def machine(threads: str) -> dict[str, str]:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", info.read_text() if info.exists() else "", flags=re.MULTILINE)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {"processor": found[1] if found else platform.processor(), "threads": threads, "gpu": gpu}


class Run:
    """A cell in a process group of its own, and the folder it writes to."""

    def __init__(self, cell: Cell, work_dir: Path | None, threads: str) -> None:
        self.cell, self.threads, self.start = cell, threads, time.monotonic()
        self.folder = Path(tempfile.mkdtemp(prefix="cell-", dir=work_dir))
        command = [sys.executable, str(JOB), *cell.settings, *cell.places, "--output_dir", str(self.folder / "out")]
        environment = os.environ | {"OMP_NUM_THREADS": threads}
        with (self.folder / "log").open("w") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )

    def row(self) -> dict[str, Any] | None:
        """The line of the finished run, or None if it failed."""
        written = [self.folder / "out" / name for name in ("metrics.json", "curve.json")]
        if self.process.returncode != 0 or not all(path.exists() for path in written):
            return None
        results, curve = json.loads(written[0].read_text())["results"], json.loads(written[1].read_text())
        return self.cell._asdict() | {
            "metric": next(iter(next(iter(results.values()))["full_depth"])),
            "results": results,
            "curve": curve,
            "seconds": round(time.monotonic() - self.start, 1),
            "versions": {name: version(name) for name in ("torch", "transformers", "adaexit_hf")},
            "machine": machine(self.threads),
        }

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        shutil.rmtree(self.folder)


def run_all(cells: Sequence[Cell], results: Path, jobs: int = 1, work_dir: Path | None = None) -> set[Key]:
    """Run cells, several at a time; returns the keys of those that failed."""
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    waiting, running, failed = list(cells), [], set()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(Run(waiting.pop(0), work_dir, threads))
            time.sleep(0.05)
            for run in [run for run in running if run.process.poll() is not None]:
                said = finish(run, results)
                if not said:
                    failed.add(run.cell.key)
                running.remove(run)
                run.close()
                print(f"{run.cell}: {said or 'failed'}; {len(waiting) + len(running)} left", flush=True)
    finally:
        for run in running:
            run.close()
    return failed


def finish(run: Run, results: Path) -> str:
    """Write the line of a run and say what came out; of a failed one keep the log, show its end and say nothing."""
    log = results.with_name(re.sub(r"[^\w.-]+", "-", f"{results.stem} {run.cell}") + ".log")
    row = run.row()
    if row is None:
        shutil.copy(run.folder / "log", log)
        print(*log.read_text(errors="replace").splitlines()[-15:], f"the whole log: {log}", sep="\n", file=sys.stderr)
        return ""
    append_line(results, row)
    log.unlink(missing_ok=True)  # of an earlier try
    first = figures(row)["validation"]
    scores = f"{row['metric']} {first.full:.4f} -> {first.exits:.4f} at layer {first.layer:.2f}"
    return f"{scores}, {row['seconds']:.0f} s"


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    own, more = list(arguments), []
    if "--" in own:
        own, more = own[: own.index("--")], own[own.index("--") + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", required=True, choices=DATASETS, metavar="NAME", help=str(DATASETS))
    parser.add_argument("--methods", nargs="+", required=True, help="Rows of the table.")
    parser.add_argument("--seeds", type=int, default=3, help="How many; 0, 1, 2, ...")
    parser.add_argument("--model_name_or_path", required=True, help="Encoder, Hub name or folder.")
    parser.add_argument("--results", type=Path, required=True, help="One JSON line for every finished cell.")
    parser.add_argument("--data_root", help="Folder with glue/ (laid out as nyu-mll/glue) and trec/, mr/, ...")
    parser.add_argument("--token_depths", help="Folder with mrpc/masked-lm/, ..., for depths by reconstruction.")
    parser.add_argument("--traces", help="Folder: keep every run's trace in it.")
    parser.add_argument("--exit_pooling", choices=["first", "mean"], help="For every method with exits.")
    parser.add_argument("--jobs", type=int, default=1, help="How many run at a time.")
    parser.add_argument(
        "--work_dir", type=Path, help="Where runs put their models until they are done. Default: temporary."
    )
    parser.add_argument("--table_only", action="store_true", help="Run nothing.")
    options = parser.parse_args(own)
    own_flags = {
        "--method",
        "--method_config",
        "--seed",
        "--output_dir",
        "--task_name",
        "--dataset_name",
        "--save_traces",
    }
    try:
        for name, dataset in itertools.product(options.methods, options.datasets):
            variant = variant_of(name, options.exit_pooling)
            applies(variant, dataset)
            if by_reconstruction(variant) and not options.token_depths:
                raise ValueError(f"token_depths: missing; '{name}' needs the folder of masked language models")
        taken = own_flags & set(grouped(more))
        if taken:
            raise ValueError(f"flags after --: got {', '.join(sorted(taken))}, which this script sets itself")
        if min(options.seeds, options.jobs) < 1:
            raise ValueError(f"seeds, jobs: got {options.seeds}, {options.jobs}; pass 1 or more")
    except ValueError as error:
        parser.error(str(error))
    return options, more


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing and print the tables; 1 if a cell failed, 130 if stopped."""
    options, more = parse(sys.argv[1:] if arguments is None else arguments)
    cells, rows = cells_of(options, more), read_results(options.results)
    missing = {} if options.table_only else {cell.key: cell for cell in cells if cell.key not in rows}
    print(f"{len(cells)} cells, {len(missing)} to run", flush=True)
    for folder in filter(None, (options.results.parent, options.work_dir)):
        folder.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGINT, signal.SIGTERM):  # both stop the runs; a shell's background jobs ignore the first
        signal.signal(number, signal.default_int_handler)
    try:
        failed = run_all(list(missing.values()), options.results, options.jobs, options.work_dir)
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    rows = read_results(options.results) if missing else rows
    keys: dict[tuple[str, str], list[Key]] = {key: [] for key in itertools.product(options.datasets, options.methods)}
    for cell in cells:
        keys[cell.dataset, cell.method].append(cell.key)
    print(tables(keys, rows, failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
