"""A script that answers one text in a new process, and prints what that took as JSON; `start_up` runs it.

It imports nothing of this package by itself, so that every way to answer loads only what it needs.
"""

import json
import re
import sys
import time
from pathlib import Path
from typing import Any


def answer(kind: str, path: str, text: Any, threads: int, **options: Any) -> Any:
    """Load a model and classify one text.

    Args:
        kind: "torch", "exits onnx" or "stock onnx".
        path: The checkpoint, the folder with the exported model, or the graph.
        text: A text, or a list of two.
        threads: Number of threads.
        **options: `exit_threshold`, and for the checkpoint `revision`, for the exported model `precision`, for the
            graph `tokenizer`, the file with its tokenizer.
    """
    text = text if isinstance(text, str) else tuple(text)
    threshold = options["exit_threshold"]
    if kind == "torch":
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        import adaexit_hf

        torch.set_num_threads(threads)
        revision = options["revision"]
        model = AutoModelForSequenceClassification.from_pretrained(path, revision=revision).eval()
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
        return adaexit_hf.predict(model, [text], tokenizer, exit_threshold=threshold, progress=False)
    if kind == "exits onnx":
        import adaexit_onnx  # type: ignore[import-not-found, unused-ignore]

        classifier = adaexit_onnx.OnnxEarlyExitClassifier(path, options["precision"], threads)
        return classifier.predict([text], exit_threshold=threshold)
    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads, settings.log_severity_level = threads, 1, 3
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    (encoding,) = Tokenizer.from_file(options["tokenizer"]).encode_batch([text])
    columns = {"input_ids": encoding.ids, "token_type_ids": encoding.type_ids}
    return session.run(None, {given.name: np.asarray([columns[given.name]]) for given in session.get_inputs()})


def peak_memory() -> int:
    """Peak memory of this process so far, in bytes.

    On Linux it is read from /proc, since `ru_maxrss` of a child process includes the memory of its parent.
    """
    status = Path("/proc/self/status")
    high_water = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), flags=re.MULTILINE) if status.exists() else None
    if high_water:
        return int(high_water[1]) * 1024
    import resource  # does not exist on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    started, arguments = float(sys.argv[1]), json.loads(sys.argv[2])
    sys.path[0] = sys.argv[3]  # in place of this folder, whose modules are none of the script's
    answer(**arguments)
    found = {"wall_seconds": time.time() - started, "cpu_seconds": time.process_time(), "peak_memory": peak_memory()}
    print(json.dumps(found | {"torch": "torch" in sys.modules}))  # noqa: T201
