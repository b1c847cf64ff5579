"""Workers on a Ray cluster: an actor for each GPU, on a CPU cluster for each few cores; they come and go with their nodes."""

import importlib
import importlib.metadata
import importlib.util
import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from archsearch.data.prepared import fingerprint, read_manifest
from archsearch.errors import UserError, first_line, shown
from archsearch.search.engine.workers.base import Event
from archsearch.search.engine.workers.pool import Member, Pool
from archsearch.search.engine.workers.process import EVALUATOR
from archsearch.search.engine.workers.ray_connection import CONNECT_S, alive_nodes, connect
from archsearch.search.engine.workers.ray_node import NodeWorker, Shelf
from archsearch.search.engine.workers.ray_worker import LOOK_EVERY_S, RayWorker
from archsearch.system import Say, ignore
from archsearch.version import __version__

_START_POLL_S = 0.1
# What must be the same on every node: what figures depend on. Of builds such as 2.9.0+cu128 only the part before the plus sign.
_PACKAGES = ("torch", "torchvision", "timm")


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
            is_late = time.monotonic() - began > CONNECT_S
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
        if time.monotonic() - self._looked >= LOOK_EVERY_S:
            self._looked = time.monotonic()
            alive = {node["NodeID"]: node for node in alive_nodes()}
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
