"""Run code in a new process, in which neither this package nor Transformers is imported yet.

Importing other packages, torch above all, takes most of the time that a new process needs. They are imported once, in
a server from which the new processes are forked. These have the environment and the working directory of the first
call, save for what a call passes.
"""

import faulthandler
import gc
import importlib
import io
import os
import runpy
import socket
import sys
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stdout
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from types import ModuleType

PRELOADED = ["torch", "torch.distributed.tensor", "torch.distributed.fsdp", "torch._dynamo", "scipy.optimize", "sympy"]
if "forkserver" in get_all_start_methods():
    CONTEXT = get_context("forkserver")
    CONTEXT.set_forkserver_preload(PRELOADED)
else:  # Windows, where every process imports everything anew
    CONTEXT = get_context("spawn")
SECONDS = 300


def check_new() -> None:
    faulthandler.dump_traceback_later(SECONDS, exit=True)  # rather than hang
    gc.freeze()  # imports make many objects, and no garbage
    gc.set_threshold(10_000, 20, 20)
    imported = {name.split(".")[0] for name in sys.modules} & {"adaexit_hf", "transformers"}
    if imported:
        raise RuntimeError(f"a new process has {imported} already")


def executed(code: str) -> str:
    check_new()
    with redirect_stdout(io.StringIO()) as printed:
        exec(code, {"__name__": "__main__"})
    return printed.getvalue().strip()


@contextmanager
def new_process() -> Iterator[ProcessPoolExecutor]:
    """It would import the main module of this one, were there a file of it."""
    main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:
        with ProcessPoolExecutor(1, mp_context=CONTEXT) as pool:
            yield pool
    finally:
        sys.modules["__main__"] = main


def run(code: str) -> str:
    """What the code prints; its error is raised here if it can be pickled."""
    with new_process() as pool:
        return pool.submit(executed, code).result()


def started(script: Path, arguments: list[str], environment: dict[str, str]) -> None:
    check_new()
    os.environ.update(environment)
    sys.argv = [str(script), *arguments]
    runpy.run_path(str(script), run_name="__main__")


def run_script(script: Path, *arguments: str, **environment: str) -> None:
    with new_process() as pool:
        pool.submit(started, script, list(arguments), environment).result()


def told(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What torchrun tells its processes; `test_training_distributed.py` asks the true one."""
    numbers = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port}
    return {name: str(number) for name, number in numbers.items()} | {"MASTER_ADDR": "localhost"}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def forked(worker: str, argument: str, ranks: int) -> list[int]:
    module, port, processes = importlib.import_module(f"helpers.{worker}"), free_port(), []
    for rank in range(ranks):
        processes.append(os.fork())
        if processes[-1] == 0:
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            os.environ.update(told(rank, ranks, port) | {"CUDA_VISIBLE_DEVICES": ""})
            try:
                module.main(Path(argument))
                module.torch.distributed.barrier()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)  # some runs end in SIGABRT while the interpreter shuts down, after all work is done
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]


def run_ranks(worker: str, argument: Path, ranks: int = 2) -> list[int]:
    """Exit codes of distributed processes that each run `main(argument)` of a helper; they share all imports."""
    with new_process() as pool:
        return pool.submit(forked, worker, str(argument), ranks).result()
