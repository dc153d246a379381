"""The folder of a training run: what it may hold before the run, and the command that continues an interrupted one."""

import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..hub.model_card import MARKER, PICTURES
from ..utils.files import LEDGER, check_writable

# Files that a run writes, and folders of its checkpoints: those of the model, its tokenizer and code, and the results.
_FILES = re.compile(
    r"""config\.json | generation_config\.json | (adapter_)?model.*\.(safetensors|bin|json) | adapter_config\.json
    | pytorch_model.*\.(bin|json) | tokenizer(_config)?\.json | special_tokens_map\.json | added_tokens\.json
    | vocab\.(txt|json) | merges\.txt | (spiece|sentencepiece\.bpe|spm|tokenizer)\.model | chat_template\.jinja
    | training_args\.bin | trainer_state\.json | stages\.json(\.new)? | losses-.+\.jsonl
    | metrics\.json | curve\.json | report\.html | certificate\.json | seen_rows\.npz""",
    re.VERBOSE,
)
_FOLDERS = re.compile(r"checkpoint-\d+|stage-\d+-.+")
_CODE = {path.name for path in Path(__file__).parents[1].joinpath("models").glob("*.py")}


def models_in(folder: Path) -> list[str]:
    """Names of what says that there is a model, or a part of one: the config and checkpoints of a run."""
    patterns = ("config.json", "model*.safetensors", "checkpoint-*", "stage-*-*/checkpoint-*", "stage-*-*/final")
    return [path.relative_to(folder).as_posix() for pattern in patterns for path in sorted(folder.glob(pattern))]


def check_output_dir(folder: Path, resume: bool, overwrite: bool, plain: bool, source: str) -> None:
    """Check that a run may write into its folder.

    Args:
        folder: The folder, which need not exist.
        resume: Whether the run continues another one, if there is something to continue.
        overwrite: Whether an earlier model is to be removed.
        plain: Whether a model without exits is trained, whose checkpoints stand in the folder itself.
        source: Folder or Hub name of the model that training starts from.

    Raises:
        ValueError: The folder cannot be written, or holds a model that is neither continued nor to be removed; or the
            model to be removed is the one that training starts from.
    """
    check_writable("output_dir", folder)
    found = models_in(folder)
    if overwrite and resume:
        raise ValueError(
            "overwrite_output_dir: got it with --resume_from_checkpoint, which continues the run in output_dir; leave "
            "out one of them"
        )
    if found and overwrite and _would_remove(folder.resolve(), Path(source).resolve()):
        raise ValueError(
            f"overwrite_output_dir: would remove '{source}', the model that training starts from, in '{folder}'; pass "
            "another output_dir"
        )
    ours = [name for name in found if name.startswith("checkpoint-" if plain else "stage-")]
    if not found or overwrite or resume and ours:
        return
    listed = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
    nothing = " and no checkpoint of such a run to continue from" if resume else ""
    other = "--resume_from_checkpoint auto to continue that run, " if ours and not resume else ""
    raise ValueError(
        f"output_dir: '{folder}' already contains a model ({listed}){nothing}; pass another folder, {other}or "
        "--overwrite_output_dir to remove that model and all files of its run"
    )


def _would_remove(folder: Path, source: Path) -> bool:
    inside = source.relative_to(folder).parts if source.is_relative_to(folder) else ("..",)
    return not inside or _FOLDERS.fullmatch(inside[0]) is not None


def remove_model(folder: Path) -> list[str]:
    """Remove the files that belong to the model in a folder and to its run, and nothing else.

    A README.md is only removed if this package wrote it.

    Args:
        folder: The folder of a model; nothing is removed from one without a model.

    Returns:
        The names of what was removed.
    """
    removed: list[str] = []
    if not models_in(folder) and not (folder / LEDGER).exists():
        return removed
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            if not _FOLDERS.fullmatch(path.name):
                continue
            shutil.rmtree(path)
        else:
            card = path.name == "README.md" and MARKER in path.read_text(encoding="utf-8", errors="replace")
            if not (card or _FILES.fullmatch(path.name) or path.name in _CODE or path.name in PICTURES):
                continue
            path.unlink()
        removed.append(path.name)
    return removed


@contextmanager
def no_empty_folder(folder: Path) -> Iterator[None]:
    """Remove a folder, and those above it, if it was made meanwhile and is empty when there is an error."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        for path in made:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        raise


def how_to_continue(
    folder: Path, program: str, argv: Sequence[str], overwrite: bool = False, removed: bool = True
) -> str:
    """What to do after a run was interrupted: a sentence, and the command on a line of its own.

    Args:
        folder: The folder of the run.
        program: The command that was run, without its flags.
        argv: Its flags, or one JSON or YAML file with them.
        overwrite: Whether it was to remove an earlier model.
        removed: Whether it had removed that model, if there was one.

    Examples:
        >>> print(how_to_continue(Path("none"), "adaexit train", ["--seed", "1", "--overwrite_output_dir"]))
        interrupted before the first checkpoint was saved. To start again:
          adaexit train --seed 1 --resume_from_checkpoint auto
    """
    if overwrite and not removed:
        return f"interrupted before the earlier model was removed. To start again:\n  {program} {shlex.join(argv)}"
    checkpoints = any(name.startswith(("checkpoint-", "stage-")) for name in models_in(folder))
    state = "interrupted. To continue from the last checkpoint"
    if not checkpoints:
        state = "interrupted before the first checkpoint was saved. To start again"
    if len(argv) == 1 and argv[0].endswith((".json", ".yaml", ".yml")):
        without = " and remove overwrite_output_dir" * overwrite
        return f'{state}, set resume_from_checkpoint to "auto"{without} in the file:\n  {program} {argv[0]}'
    return f"{state}:\n  {program} {shlex.join([*_without(argv), '--resume_from_checkpoint', 'auto'])}"


def _without(argv: Sequence[str]) -> list[str]:
    """The flags without those that say what to do with an earlier run.

    >>> _without(["--seed", "1", "--resume_from_checkpoint", "auto", "--overwrite_output_dir", "--method", "berxit"])
    ['--seed', '1', '--method', 'berxit']
    """
    kept: list[str] = []
    skipping = False
    for argument in argv:
        if argument.startswith("--"):
            skipping = argument.split("=")[0] in ("--resume_from_checkpoint", "--overwrite_output_dir")
        if not skipping:
            kept.append(argument)
    return kept
