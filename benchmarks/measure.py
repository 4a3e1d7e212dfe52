"""Runs a program in a process of its own and measures it. Linux only."""

import ctypes
import os
import subprocess
import tempfile
import time
from contextlib import suppress

PR_SET_CHILD_SUBREAPER = 36


def measured(command: list, environment: dict[str, str] | None = None) -> dict[str, float]:
    """What the command took: `wall` and `cpu` in seconds, `memory` of its largest process in bytes at the peak.

    `cpu` is user and system time of all its processes. Spark's Java outlives its parent by a moment, so this waits for
    every child: the caller must have no other. RuntimeError, with the last output, if the command fails.
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    os.sync()  # an earlier run's writes must not be flushed in this one's time
    with tempfile.TemporaryFile() as output:
        since, used = time.monotonic(), []
        child = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        with suppress(ChildProcessError):  # until there is no child left
            while True:
                process, status, usage = os.wait4(-1, 0)
                used.append(usage)
                if process == child.pid:
                    wall, child.returncode = time.monotonic() - since, os.waitstatus_to_exitcode(status)
        if child.returncode:
            output.seek(0)
            said = output.read().decode(errors="replace")[-3000:]
            raise RuntimeError(f"{command[1]} ended with {child.returncode}: {said}")
    cpu, memory = sum(each.ru_utime + each.ru_stime for each in used), max(each.ru_maxrss for each in used)
    return {"wall": round(wall, 3), "cpu": round(cpu, 3), "memory": memory * 1024}
