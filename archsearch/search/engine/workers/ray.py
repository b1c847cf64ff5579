"""Workers on a Ray cluster: an actor for each GPU, on a CPU cluster for each few cores; they come and go with their nodes."""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import platform
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from archsearch.data.prepared import fingerprint, read_manifest
from archsearch.errors import UserError, first_line, one_line, shown
from archsearch.search.engine.workers.base import KILLED, Event, Job
from archsearch.search.engine.workers.pool import Member, Pool
from archsearch.search.engine.workers.process import EVALUATOR
from archsearch.search.engine.workers.ray_node import NodeWorker, Shelf
from archsearch.system import Say, ignore
from archsearch.version import __version__

_CONNECT_S = 10.0
_LOOK_EVERY_S = 1.0
_START_POLL_S = 0.1
# What must be the same on every node: what figures depend on. Of builds such as 2.9.0+cu128 only the part before the plus sign.
_PACKAGES = ("torch", "torchvision", "timm")
# Where `ray start` leaves the address of the cluster.
_ADDRESS_FILE = Path("/tmp/ray/ray_current_cluster")  # noqa: S108  # Ray's own, read only


class RayWorker:
    """`Member` of a pool (see `pool`): one actor; `capacity` is 0 once it has died. `wake` is called when there are events, by another thread."""

    def __init__(
        self, actor: Any, name: str, device_name: str, log: str, *, can_time: bool, wake: Callable[[], None]
    ) -> None:
        self.actor, self.name, self.device_name, self.can_time = actor, name, device_name, can_time
        self._log, self._wake = log, wake
        self.is_dead = False
        self._trial: int | None = None
        self._arrived: queue.SimpleQueue[Event] = queue.SimpleQueue()  # of the job under way
        self._reader: threading.Thread | None = None
        self._unread: list[Event] = []  # of a job that was ended

    @property
    def capacity(self) -> int:
        """One job at a time."""
        return int(not self.is_dead)

    def submit(self, job: Job) -> None:
        """Start a job."""
        assert self._trial is None, f"trial {self._trial} is still being evaluated"
        self._trial, self._arrived = job.trial, queue.SimpleQueue()
        stream = self.actor.evaluate.options(num_returns="streaming").remote(json.dumps(vars(job)))
        self._reader = threading.Thread(target=self._read, args=(stream, job.trial, self._arrived), daemon=True)
        self._reader.start()

    def _read(self, stream: Any, trial: int, arrived: "queue.SimpleQueue[Event]") -> None:
        """Read each event as soon as the actor sends it, in a thread of its own: Ray loses the events of a dead node that were not read before."""
        import ray

        is_over = False
        while not is_over and self._trial == trial:  # until `close`
            if not ray.wait([stream], timeout=_LOOK_EVERY_S)[0]:
                continue
            try:
                events = json.loads(ray.get(next(stream)))
            except (StopIteration, ray.exceptions.RayError) as error:
                events = [{"event": "failed", "trial": trial, "reason": self._death(error), "device_lost": True}]
            for event in events:
                arrived.put(event)
            is_over = events[-1]["event"] in ("done", "failed")
            self._wake()

    def _death(self, error: Exception) -> str:
        """Why the actor died, and where its log is, in one line."""
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        why = next((line for line in lines if line.startswith("The actor is dead because ")), lines[0])
        why = why.removeprefix("The actor is dead because ").partition(". ")[0]
        return one_line(f"{KILLED}: {self.name}: {why}; its log on that node: {self._log}")

    def events(self, timeout: float) -> list[Event]:
        """The events since the last call; an actor or node that died is a `failed` event."""
        events, self._unread = self._unread, []
        with contextlib.suppress(queue.Empty):
            while self._trial is not None:
                event = self._arrived.get(timeout=timeout) if timeout and not events else self._arrived.get_nowait()
                if event["event"] in ("done", "failed"):
                    self._trial = None
                    if event.pop("device_lost", False):
                        self.close()  # it may live on where the network broke
                events.append(event)
        return events

    def end(self, trial: int, reason: str) -> None:
        """Kill the actor where it evaluates this trial; the reason is the trial's."""
        if self._trial != trial:
            return
        unread = self.events(0)
        if self._trial is not None:  # it has not ended meanwhile
            self.close()
            unread.append({"event": "failed", "trial": trial, "reason": reason})
        self._unread = unread

    def close(self) -> None:
        """Kill the actor, also in the middle of a job."""
        import ray

        self.is_dead, self._trial = True, None
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(self.actor)

    def join(self) -> None:
        """After `close`, wait until nothing is read any more."""
        if self._reader is not None:
            self._reader.join(2 * _LOOK_EVERY_S)


@dataclass
class _Node:
    """A node of the cluster. `probe` gives its versions; `starting` are its actors that are not ready, with what `start` will give."""

    name: str
    slots: int
    probe: Any
    is_accepted: bool | None = None  # None: not known yet
    members: list[RayWorker] = field(default_factory=list)
    starting: list[tuple[Any, Any]] = field(default_factory=list)


class RayWorkers(Pool[RayWorker]):
    """`Workers` (see `base`) on the cluster at `address` (`auto`: that of `ray start`).

    `limit` is the most actors, `threads` the cores of each on a CPU cluster, `folder` the prepared images if any. The run's device class
    is `device_class`, else the device name of the first actor that is ready; others train only. Returns when the first actor is ready.
    Raises UserError without Ray or the cluster, without GPUs for `device` cuda, where no node has our versions and images, and where no
    actor has the class asked for.
    """

    def __init__(
        self,
        address: str,
        evaluator: str = EVALUATOR,
        *,
        device: str = "cpu",
        threads: int | None = None,
        limit: int | None = None,
        device_class: str | None = None,
        folder: str | None = None,
        say: Say = ignore,
    ) -> None:
        super().__init__([], self._wait)
        connect(address, device)
        self._evaluator, self._device, self._say = evaluator, device, say
        self._need = {"GPU": 1} if device == "cuda" else {"CPU": threads or 1}
        self._limit, self.device_class, self._folder = limit, device_class, folder
        self._digits = None if folder is None else fingerprint(read_manifest(Path(folder)))
        self._shelf: Any = None
        self._nodes: dict[str, _Node] = {}
        self._refusals: list[str] = []
        self._looked = float("-inf")
        self._has_events = threading.Event()
        try:
            self._await_first()
        except BaseException:
            self.close()
            raise

    def _await_first(self) -> None:
        """Wait until there is a worker, of the class asked for, as long as one may come."""
        began = time.monotonic()
        is_said = False
        while not any(member.can_time for member in self._all()):
            self._look()
            time.sleep(_START_POLL_S)
            if self._refusals and all(node.is_accepted is False for node in self._nodes.values()):
                raise UserError(f"--ray: no node can work on this run: {self._refusals[0]}")
            is_late = time.monotonic() - began > _CONNECT_S
            can_time = any(member.can_time for member in self._all())
            if self.members and not can_time and (is_late or not any(node.starting for node in self._nodes.values())):
                names = sorted({member.device_name for member in self._all()})
                raise UserError(
                    f"--device-class: got {shown(self.device_class)}, the cluster's workers have: {', '.join(names)}"
                )
            if is_late and not is_said:
                is_said = True
                self._say(f"waiting for a free {next(iter(self._need))} of the Ray cluster")

    def conditions(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """`device.conditions` of a worker that can time."""
        import ray

        member = next(member for member in self._all() if member.can_time)
        found: dict[str, Any] = ray.get(member.actor.conditions.remote(dict(settings)))
        return found

    def _all(self) -> list[RayWorker]:
        return [member for node in self._nodes.values() for member in node.members]

    def events(self, timeout: float) -> list[Event]:
        """As of a pool, whose members are those of the cluster now."""
        import ray

        if not ray.is_initialized():  # after `close`
            return []
        self._look()
        return super().events(timeout)

    def _wait(self, members: Sequence[Member], timeout: float) -> None:
        """Return when a job has events, or after some seconds."""
        if self._has_events.wait(timeout):
            self._has_events.clear()  # before they are taken: the next ones set it again

    # The cluster

    def _look(self) -> None:
        """Take in what has changed: nodes that came or went, actors that are ready or died."""
        if time.monotonic() - self._looked >= _LOOK_EVERY_S:
            self._looked = time.monotonic()
            alive = {node["NodeID"]: node for node in _alive()}
            for key in [key for key in self._nodes if key not in alive]:
                self._lose(self._nodes.pop(key))
            for key in alive.keys() - self._nodes.keys():
                self._meet(key, alive[key])
        for key, node in list(self._nodes.items()):
            if node.is_accepted is None and _is_ready(node.probe):
                self._judge(node)
            self._update(key, node)
        dead = [member for member in self.members if not member.capacity and member not in self._at_work.values()]
        for member in dead:
            self.members.remove(member)

    def _meet(self, key: str, about: Mapping[str, Any]) -> None:
        """Ask a new node for its versions, where it has what a worker needs."""
        import ray

        resources = about["Resources"]
        slots = min(int(resources.get(name, 0) // amount) for name, amount in self._need.items())
        if slots:
            ask = ray.remote(_make_probe()).options(num_cpus=0, max_retries=0, scheduling_strategy=_on(key))
            name = about.get("NodeName") or about["NodeManagerAddress"]
            self._nodes[key] = _Node(name, slots, ask.remote(_PACKAGES))

    def _lose(self, node: _Node) -> None:
        for member in node.members:
            member.is_dead = True  # its stream says so too, if it has one
        if node.is_accepted:
            self._say(f"node {node.name} has left the cluster")

    def _judge(self, node: _Node) -> None:
        """Accept a node, or refuse it for its versions."""
        import ray

        try:
            theirs = ray.get(node.probe)
        except ray.exceptions.RayError as error:  # it died; the next look drops it
            theirs = {"answer": first_line(error)}
        ours = {"archsearch": __version__, **_versions()}
        others = [f"{name} {theirs.get(name) or 'not installed'}" for name in ours if theirs.get(name) != ours[name]]
        node.is_accepted = not others
        if others:
            needed = ", ".join(f"{name} {ours[name]}" for name in ours if theirs.get(name) != ours[name])
            self._refuse(node, f"it has {', '.join(others)}, this run is by {needed}; install these versions there")

    def _refuse(self, node: _Node, reason: str) -> None:
        sentence = f"node {node.name}: {reason}"
        node.is_accepted = False
        self._refusals.append(sentence)
        if self.members:
            self._say(f"left out {sentence}")

    def _update(self, key: str, node: _Node) -> None:
        """Replace a node's dead actors, and take in those that are ready."""
        import ray

        node.members = [member for member in node.members if not member.is_dead]
        for pair in [pair for pair in node.starting if _is_ready(pair[1])]:
            node.starting.remove(pair)
            try:
                about = ray.get(pair[1])
            except ray.exceptions.RayError:  # it died at its start; another one is started
                continue
            if "refusal" in about:
                self._refuse(node, about["refusal"])
            else:
                self._take(node, pair[0], about)
        if not node.is_accepted:
            for actor, _ in node.starting:
                ray.kill(actor)
            node.starting.clear()
        while node.is_accepted and len(node.members) + len(node.starting) < node.slots and self._has_room():
            node.starting.append(self._start(key))

    def _has_room(self) -> bool:
        number = sum(len(node.members) + len(node.starting) for node in self._nodes.values())
        return self._limit is None or number < self._limit

    def _start(self, key: str) -> tuple[Any, Any]:
        """An actor on a node, and what its `start` will give once its resources are free."""
        import ray

        if self._folder is not None and self._shelf is None:
            here = _on(ray.get_runtime_context().get_node_id())
            self._shelf = ray.remote(Shelf).options(num_cpus=0, scheduling_strategy=here).remote(self._folder)
        resources = {"num_gpus": 1, "num_cpus": 0} if self._device == "cuda" else {"num_cpus": self._need["CPU"]}
        make: Any = ray.remote(NodeWorker).options(
            **resources, max_restarts=0, max_task_retries=0, scheduling_strategy=_on(key)
        )
        actor = make.remote(self._evaluator, self._device)
        return actor, actor.start.remote(self._folder, self._digits, self._shelf)

    def _take(self, node: _Node, actor: Any, about: Mapping[str, Any]) -> None:
        """A new member of the pool; the first one's device is the class of the run."""
        if self.device_class is None:
            self.device_class = about["device_name"]
        can_time = about["device_name"] == self.device_class
        place = len(node.members)
        name = f"{node.name} {self._device} {place}"
        worker = RayWorker(
            actor, name, about["device_name"], about["log"], can_time=can_time, wake=self._has_events.set
        )
        if not can_time:
            self._say(f"{name} is a {about['device_name']}, the run times on {self.device_class}: it only trains")
        node.members.append(worker)
        self.members.append(worker)

    def close(self) -> None:
        """Kill all actors and leave the cluster. A second call does nothing."""
        import ray

        if not ray.is_initialized():
            return
        super().close()
        for node in self._nodes.values():
            for actor, _ in node.starting:
                ray.kill(actor)
        for member in self.members:
            member.join()
        self._nodes.clear()
        ray.shutdown()


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
            except (
                Exception
            ) as error:  # of many kinds: no cluster, another version of Ray or Python, a node that is none of it
                raise UserError(f"--ray {address}: cannot join this cluster: {first_line(error)}") from error
    has_gpus = any(node["Resources"].get("GPU", 0) >= 1 for node in _alive())
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
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
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


def _alive() -> list[dict[str, Any]]:
    """What Ray says of the nodes that are there."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]  # Ray leaves it untyped
    return [node for node in nodes if node["Alive"]]


def _is_ready(ref: Any) -> bool:
    import ray

    return bool(ray.wait([ref], timeout=0)[0])


def _on(node: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node, soft=False)


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name).partition("+")[0] for name in _PACKAGES} | {
        "python": ".".join(platform.python_version_tuple()[:2])
    }


def _make_probe() -> Callable[[Sequence[str]], dict[str, str | None]]:
    """What tells a node's versions: a local function, which Ray sends as it is, since another version of this package may lack it."""

    def probe(packages: Sequence[str]) -> dict[str, str | None]:
        import importlib.metadata
        import platform

        found: dict[str, str | None] = {"python": ".".join(platform.python_version_tuple()[:2])}
        for name in packages:
            try:
                found[name] = importlib.metadata.version(name).partition("+")[0]
            except importlib.metadata.PackageNotFoundError:
                found[name] = None
        try:
            from archsearch.version import __version__

            found["archsearch"] = __version__
        except ImportError:
            found["archsearch"] = None
        return found

    return probe
