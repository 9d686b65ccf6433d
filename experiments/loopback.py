"""Starts the ranks of a group on this machine, over its loopback address, as `mlx.launch` does."""

import json
import os
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

TIMEOUT = 24 * 3600  # seconds


def outputs(command: Sequence[str], ranks: int, is_group: bool = True) -> list[str]:
    """Runs a command once for each rank, all at the same time, and returns what each of them printed.

    Without `is_group`, the processes get their ranks but no addresses, so that each of them trains by itself.
    """
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(ranks)]
    hosts = [[f"127.0.0.1:{s.getsockname()[1]}"] for s in sockets] if is_group else []
    for s in sockets:
        s.close()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hosts.json"
        path.write_text(json.dumps(hosts) if is_group else "")
        started = [
            subprocess.Popen(
                command,
                env=os.environ | {"MLX_HOSTFILE": str(path), "MLX_RANK": str(rank)},
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(ranks)
        ]
        printed = [process.communicate(timeout=TIMEOUT)[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit(f"a process failed: exit codes {[process.returncode for process in started]}")
    return printed
