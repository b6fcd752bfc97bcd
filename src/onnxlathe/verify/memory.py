"""How much memory there is for running a model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_UNKNOWN = 8 << 30


def available_memory() -> int:
    """Bytes that this process may still take: what is free on the machine, in its container, of its limits.

    8 GiB where the system does not say.
    """
    found = [_UNKNOWN]
    with suppress(OSError, IndexError, ValueError):
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        found = [int(re.findall(r"MemAvailable:\s+(\d+) kB", text)[0]) * 1024]
    for limit, used in _groups():
        with suppress(OSError, ValueError):  # "max", or no such group
            found.append(int(limit.read_text(encoding="ascii")) - used)
    with suppress(ImportError, OSError, ValueError):
        import resource

        for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
            soft = resource.getrlimit(kind)[0]
            if soft >= 0:
                found.append(soft)
    return max(min(found), 0)


def _groups() -> Iterator[tuple[Path, int]]:
    """The files with the limits of the control groups that this process is in, and what is taken of each."""
    with suppress(OSError):
        for line in _MEMBERSHIP.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "memory":
                base, limit = _GROUPS / "memory", "memory.limit_in_bytes"
            elif not controllers:
                base, limit = _GROUPS, "memory.max"
            else:
                continue
            # In a container the group's own folder is mounted, and the path leads nowhere.
            for folder in (base / path.strip("/"), base):
                yield folder / limit, _taken(folder)


def _taken(folder: Path) -> int:
    """Bytes that the processes of a group hold and the system cannot take back."""
    with suppress(OSError, ValueError):
        counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return int(counts.get("anon") or counts.get("total_rss") or counts.get("rss") or 0)
    return 0
