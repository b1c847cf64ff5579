"""Who does which part of which job in a pool whose members come, go, and are not all of the device that is timed; no processes."""

from collections.abc import Sequence
from typing import Any

from archsearch.search import Job, Pool
from archsearch.search.engine.workers.base import Event


class StubMember:
    """Keeps its job; `tell` makes it send events."""

    def __init__(self, name: str, *, can_time: bool = True) -> None:
        self.name, self.can_time, self.capacity = name, can_time, 1
        self.jobs: list[Job] = []
        self.closed = 0
        self._events: list[Event] = []

    def submit(self, job: Job) -> None:
        """Keep it."""
        self.jobs.append(job)

    def phases(self) -> list[str]:
        """What is left to measure of the last job."""
        job = self.jobs[-1]
        return [phase for phase in job.settings["phases"] if phase not in job.done]

    def tell(self, *kinds: str) -> None:
        """`done`, `failed`, or a phase that has ended."""
        trial = self.jobs[-1].trial
        for kind in kinds:
            is_last = kind in ("done", "failed")
            about = {"event": kind} if is_last else {"event": "phase", "phase": kind, "values": {"of": kind}}
            self._events.append({**about, "trial": trial})

    def events(self, timeout: float) -> list[Event]:
        """Those told since the last call."""
        found, self._events = self._events, []
        return found

    def end(self, trial: int, reason: str) -> None:
        """Fail it."""
        self._events.append({"event": "failed", "trial": trial, "reason": reason})

    def close(self) -> None:
        """Count."""
        self.closed += 1


def nothing(members: Sequence[StubMember], timeout: float) -> None:
    """Wait for no one."""


def make_pool(*members: StubMember) -> Pool[StubMember]:
    return Pool(members, nothing)


def job(trial: int, *phases: str, **settings: Any) -> Job:
    phases = phases or ("count", "throughput", "proxy")
    return Job(trial=trial, arch={}, settings={"phases": list(phases), **settings}, done={})


def kinds(events: list[Event]) -> list[tuple[Any, ...]]:
    return [(event["trial"], event.get("phase", event["event"]), event.get("worker")) for event in events]


def test_where_all_can_time_a_job_stays_whole() -> None:
    one, two = StubMember("one"), StubMember("two")
    pool = make_pool(one, two)
    assert pool.capacity == 2
    for trial in range(3):
        pool.submit(job(trial))
    assert (one.phases(), two.phases()) == (["count", "throughput", "proxy"],) * 2
    assert len(one.jobs) == len(two.jobs) == 1, "the third waits"
    two.tell("count", "done")
    assert kinds(pool.events(0)) == [(1, "count", "two"), (1, "done", "two")]
    assert two.jobs[-1].trial == 2


def test_a_member_that_only_trains_gets_the_rest_of_a_job() -> None:
    timer, trainer = StubMember("timer"), StubMember("trainer", can_time=False)
    pool = make_pool(trainer, timer)
    pool.submit(job(7, ahead=["next"]))
    assert (timer.phases(), trainer.jobs) == (["count", "throughput"], [])
    assert timer.jobs[-1].settings["ahead"] == ["next"]
    timer.tell("count", "throughput", "done")
    assert kinds(pool.events(0)) == [(7, "count", "timer"), (7, "throughput", "timer")], "the part's end is not told"
    assert trainer.phases() == ["proxy"]
    assert trainer.jobs[-1].done == {"count": {"of": "count"}, "throughput": {"of": "throughput"}}
    assert "ahead" not in trainer.jobs[-1].settings, "it is for the part with the timing"
    pool.submit(job(8))
    assert timer.jobs[-1].trial == 8, "free again while 7 trains"
    trainer.tell("proxy", "done")
    assert kinds(pool.events(0)) == [(7, "proxy", "trainer"), (7, "done", "trainer")]


def test_a_failure_in_the_first_part_is_that_of_the_job() -> None:
    timer, trainer = StubMember("timer"), StubMember("trainer", can_time=False)
    pool = make_pool(timer, trainer)
    pool.submit(job(1))
    timer.tell("count", "failed")
    assert kinds(pool.events(0)) == [(1, "count", "timer"), (1, "failed", "timer")]
    assert trainer.jobs == []
    pool.submit(job(1))
    timer.tell("done")
    assert pool.events(0) == []
    assert trainer.phases() == ["proxy"], "done again from its start, with no rest left over"
    assert trainer.jobs[-1].done == {}


def test_timers_that_are_the_fewer_do_not_train() -> None:
    timer = StubMember("timer")
    trainers = [StubMember(name, can_time=False) for name in ("a", "b")]
    pool = make_pool(timer, *trainers)
    for trial in range(3):
        pool.submit(job(trial, "proxy"))
    assert [len(member.jobs) for member in (timer, *trainers)] == [0, 1, 1]
    pool.submit(job(3, "again"))
    assert timer.jobs[-1].trial == 3, "a timing overtakes a training that waits"
    trainers[1].capacity = 0
    timer.tell("done")
    pool.events(0)
    assert timer.jobs[-1].trial == 2, "one trainer is left: they are not the fewer"


def test_a_training_goes_on_where_it_was() -> None:
    one, two = StubMember("one"), StubMember("two")
    pool = make_pool(one, two)
    pool.submit(job(0, "count"))
    pool.submit(job(1, "proxy@20"))
    one.tell("count", "done")
    two.tell("proxy@20", "done")
    pool.events(0)
    pool.submit(job(2, "count"))
    pool.submit(job(3, "count"))
    assert (one.jobs[-1].trial, two.jobs[-1].trial) == (2, 1), "two keeps its training for one call"
    pool.submit(job(1, "proxy@20", "proxy"))
    assert [job.trial for job in two.jobs] == [1, 1]
    two.tell("proxy@20", "done")
    pool.events(0)
    pool.events(0)
    assert two.jobs[-1].trial == 3, "it was not wanted"


def test_a_job_that_waits_is_ended_without_a_member() -> None:
    timer, trainer = StubMember("timer"), StubMember("trainer", can_time=False)
    pool = make_pool(timer, trainer)
    trainer.capacity = 0
    pool.submit(job(1))
    timer.tell("count", "throughput", "done")
    timer.capacity = 0
    pool.events(0)
    assert pool.capacity == 0
    pool.end(1, "stuck")  # its rest waits
    pool.end(2, "unknown")
    assert pool.events(0) == [{"event": "failed", "trial": 1, "reason": "stuck"}]
    timer.capacity = 1
    assert pool.events(0) == []
    assert len(timer.jobs) == 1
    pool.submit(job(3))
    pool.end(3, "slow")
    assert pool.events(0) == [{"event": "failed", "trial": 3, "reason": "slow", "worker": "timer"}]


def test_jobs_wait_for_members_that_join() -> None:
    pool = make_pool()
    pool.submit(job(5))
    assert (pool.capacity, pool.events(0)) == (0, [])
    pool.members.append(StubMember("late"))
    assert pool.events(0) == []
    assert pool.members[0].jobs[-1].trial == 5


def test_close_ends_all_and_forgets_what_waits() -> None:
    one, two = StubMember("one"), StubMember("two")
    pool = make_pool(one, two)
    for trial in range(3):
        pool.submit(job(trial))
    pool.close()
    pool.close()
    assert (one.closed, two.closed) == (2, 2)
    assert pool.events(0) == []
    assert [len(member.jobs) for member in (one, two)] == [1, 1]
