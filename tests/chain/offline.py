"""Programs in a network of their own without interfaces, where Linux gives one, and listened to everywhere."""

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from nnunetv2.training.logging import nnunet_logger

#: As if it were installed: notes who imports it, and whatever is taken out of it.
WANDB = """
import os, sys

def note(what):
    with open(os.environ["WANDB_LOG"], "a") as file:
        file.write(f"{what}\\n")

def __getattr__(name):
    note(f"use of {name}")
    raise AttributeError(name)

frame = sys._getframe(1)
while "importlib" in frame.f_code.co_filename:
    frame = frame.f_back
note(f"import by {frame.f_globals['__name__']}")
"""
#: loaded by every Python process of the chain: notes and refuses whatever would leave the machine
LISTENER = """
import os, sys

def listen(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname") or (
        event in ("socket.connect", "socket.sendto") and not isinstance(arguments[1], (str, bytes))
    ):
        with open(os.environ["NETWORK_LOG"], "a") as file:
            file.write(f"{event} {arguments}\\n")
        raise OSError("the network is out of bounds")

sys.addaudithook(listen)
"""


class Offline:
    """Words before a command and variables of its environment; ``check`` afterwards."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        """Prepare it in a folder, and see that a program that asks for a network is noticed."""
        (folder / "sitecustomize.py").write_text(LISTENER)
        (folder / "wandb.py").write_text(WANDB)
        self.log, self.asked = folder / "network.txt", folder / "wandb.txt"
        others = {name: value for name, value in environment.items() if name != "nnUNet_wandb_enabled"}
        own = {"PYTHONPATH": str(folder), "NETWORK_LOG": str(self.log), "WANDB_LOG": str(self.asked)}
        self.environment = {**others, **own}
        self.prefix = ["unshare", "-n"] if shutil.which("unshare") else []
        if subprocess.run([*self.prefix, "true"], capture_output=True).returncode:
            self.prefix = []  # not permitted here; what Python tries is seen all the same
        probe = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=2)"
        heard = {**self.environment, "NETWORK_LOG": str(folder / "probe.txt")}
        assert subprocess.run([*self.prefix, sys.executable, "-c", probe], env=heard, capture_output=True).returncode
        assert "192.0.2.1" in (folder / "probe.txt").read_text()

    def check(self) -> None:
        """Nothing has asked for a network; nnU-Net's logger alone has looked for wandb, and done nothing with it."""
        assert not self.log.exists(), self.log.read_text()
        assert set(self.asked.read_text().splitlines()) == {f"import by {nnunet_logger.__name__}"}
