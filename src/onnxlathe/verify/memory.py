"""How much memory there is for running a model."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
_UNKNOWN = 8 << 30


def available_memory() -> int:
    """Bytes that this process may still take: what is free on the machine, in its container, of its limits.

    8 GiB where the system does not say.
    """
    found = [_UNKNOWN]
    with suppress(OSError, IndexError, ValueError):
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        found = [int(re.findall(r"MemAvailable:\s+(\d+) kB", text)[0]) * 1024]
    for limit, usage in _CGROUPS:
        with suppress(OSError, ValueError):  # "max", or no such group
            found.append(int(Path(limit).read_text()) - int(Path(usage).read_text()))
    with suppress(ImportError, OSError, ValueError):
        import resource

        for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
            soft = resource.getrlimit(kind)[0]
            if soft >= 0:
                found.append(soft)
    return max(min(found), 0)
