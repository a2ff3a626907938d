"""Runs nnU-Net's commands one after another in one process, which imports torch once.

    python stock_commands.py COMMANDS.json RESULTS.json

COMMANDS.json: a list of {"name", "command": [word, ...], "variables": {name: value}}. RESULTS.json: name -> {"status",
"output"}; the output's last 4000 characters.
"""

import contextlib
import importlib
import io
import json
import os
import sys
import traceback
from importlib.metadata import entry_points
from pathlib import Path


def main() -> None:
    commands, results_file = (Path(word) for word in sys.argv[1:])
    import torch

    torch.set_num_threads(1)
    places = {point.name: point.value for point in entry_points(group="console_scripts") if "nUNetv2" in point.name}
    results = {}
    for entry in json.loads(commands.read_text()):
        module, _, function = places[entry["command"][0]].partition(":")
        before = dict(os.environ)
        os.environ.update(entry.get("variables", {}))
        sys.argv = list(entry["command"])
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            try:
                returned = getattr(importlib.import_module(module), function)()
                status = returned if isinstance(returned, int) else 0
            except SystemExit as end:  # a sentence of ours is one, and ends with status 1
                status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
                print(end)
            except BaseException:
                status = 99
                traceback.print_exc(file=text)
        os.environ.clear()
        os.environ.update(before)
        results[entry["name"]] = {"status": status, "output": text.getvalue()[-4000:]}
        results_file.write_text(json.dumps(results))
        print(f"{entry['name']}: {status}", flush=True)


if __name__ == "__main__":
    main()
