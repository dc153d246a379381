"""Run by torchrun: say_environment.py FOLDER. Write what each process is told."""

import json
import os
import sys
from pathlib import Path

(Path(sys.argv[1]) / f"{os.environ['RANK']}.json").write_text(json.dumps(dict(os.environ)))
