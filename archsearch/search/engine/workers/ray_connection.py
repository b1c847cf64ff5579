"""The way to a Ray cluster: its address, and the connection to it."""

import contextlib
import importlib.util
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from archsearch.errors import UserError, first_line, shown

CONNECT_S = 10.0
# Where `ray start` leaves the address of the cluster.
_ADDRESS_FILE = Path("/tmp/ray/ray_current_cluster")  # noqa: S108  # Ray's own, read only


def connect(address: str, device: str) -> str:
    """Connect to a cluster; returns the device of its workers, for `auto` cuda where it has GPUs, else cpu.

    Raises UserError where Ray is not installed, the address unreachable, and for cuda where the cluster has no GPU.
    """
    if importlib.util.find_spec("ray") is None:
        raise UserError("--ray: Ray is not installed; install it by: pip install 'archsearch[ray]'")
    # Ray then says nothing of GPUs that an actor without any sees, nor prints messages about processes and nodes that died to our stdout: the
    # trials' reasons have them. Both are read when Ray is imported.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")
    with _own_sigterm():
        import ray

        if not ray.is_initialized():
            found = _reachable(address)
            try:
                ray.init(address=found, log_to_driver=False, logging_level=logging.ERROR)
            except Exception as error:
                # Of many kinds: no cluster, another version of Ray or Python, a node that is none of it.
                raise UserError(f"--ray {address}: cannot join this cluster: {first_line(error)}") from error
    has_gpus = any(node["Resources"].get("GPU", 0) >= 1 for node in alive_nodes())
    if device == "cuda" and not has_gpus:
        ray.shutdown()
        raise UserError(f"--device: got 'cuda', but no node of the Ray cluster at {address} has a GPU; use 'cpu'")
    if device not in ("auto", "cuda", "cpu"):
        ray.shutdown()
        raise UserError(f"--device: got {device!r}; on a Ray cluster allowed are auto, cuda and cpu")
    return device if device != "auto" else "cuda" if has_gpus else "cpu"


def _reachable(address: str) -> str:
    """The address of the cluster, as HOST:PORT. Raises UserError where no connection can be made.

    Ray does not check that before: it waits for minutes, and then ends this process.
    """
    if address.startswith("ray://"):
        raise UserError(
            f"--ray: got {shown(address)}, an address of Ray Client; run on a node of the cluster, or by `ray job submit`"
        )
    found = _address_here() if address == "auto" else address
    host, _, port = found.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"--ray: got {shown(found)}; write auto, or HOST:PORT such as 10.0.0.1:6379")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"--ray {address}: nothing answers at {found} ({error}); is the cluster running?") from error
    return found


def _address_here() -> str:
    """What `auto` means: RAY_ADDRESS, else the cluster that this machine is a node of, else the one that `ray start` noted last."""
    if found := os.environ.get("RAY_ADDRESS", ""):
        return found
    running = _addresses_of_raylets()
    with contextlib.suppress(OSError):
        found = _ADDRESS_FILE.read_text().strip()  # may be of a cluster that is gone
    if running and found not in running:
        if len(running) > 1:
            raise UserError(
                f"--ray auto: this machine is in several Ray clusters; name one of {', '.join(sorted(running))}"
            )
        found = running.pop()
    if not found:
        raise UserError("--ray auto: no Ray cluster on this machine; start one by: ray start --head")
    return found


def _addresses_of_raylets() -> set[str]:
    """The addresses in the command lines of Ray's processes here; none where the system has no /proc."""
    found = set[str]()
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            program, *words = file.read_bytes().decode(errors="replace").split("\0")
            if Path(program).name == "raylet":
                found |= {word.partition("=")[2] for word in words if word.startswith("--gcs-address=")}
    return found


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep our handler of SIGTERM: Ray sets its own when it is imported and when it connects."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def alive_nodes() -> list[dict[str, Any]]:
    """What Ray says of the nodes that are there."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]  # Ray leaves it untyped
    return [node for node in nodes if node["Alive"]]
