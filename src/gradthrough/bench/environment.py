"""The environment of a run: what a reader of its records needs to know about the machine."""

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def environment(device: torch.device) -> dict[str, Any]:
    """Return versions, device, threads and commit, ready for JSON."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    commit, dirty = _commit()
    return {
        "gradthrough": _version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "device": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "commit": commit,
        "dirty": dirty,
    }


def _version() -> str | None:
    try:
        return version("gradthrough")
    except PackageNotFoundError:
        return None


@cache
def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@cache
def _commit() -> tuple[str | None, bool | None]:
    """Return the commit of the source tree and whether its code differs, None outside of one."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        command = ("git", "-C", str(here), *words)
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        tracked = git("ls-files", "--error-unmatch", Path(__file__).name)
        if not tracked:
            return None, None
        # Only the package itself: a result written beside it does not make the code another.
        changed = git("status", "--porcelain", "--", str(here.parent))
        return git("rev-parse", "HEAD"), bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return None, None
