"""What this machine has left: memory and disk."""

from __future__ import annotations

import shutil
from pathlib import Path


def free_memory_bytes() -> int:
    """Memory that can be had without swapping: the machine's, or the container's where that is less."""
    import psutil

    free = psutil.virtual_memory().available
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):  # no container, or no limit ("max")
        return free
    return min(free, max(0, limit - used))


def free_disk_bytes(folder: Path) -> int:
    """Free bytes of the file system that holds (or will hold) a folder."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
