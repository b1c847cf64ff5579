from .config import RunConfig, make_settings
from .early_stopping import Curve, RungScore, goes_on
from .engine.driver import Driver
from .engine.listener import Listener, State, Tally
from .engine.pace import Pace
from .engine.time_left import TimeLeft
from .engine.workers.base import Job, Workers
from .engine.workers.pool import Pool
from .engine.workers.process import ProcessWorker
from .engine.workers.ray import RayWorkers
from .load import Run, load_run
from .run import RunRequest, carry_out, configure
from .study.address import driver_url
from .study.opening import open_run
from .study.restore import restore_run
from .study.store import RunStore

__all__ = [
    "Curve",
    "Driver",
    "Job",
    "Listener",
    "Pace",
    "Pool",
    "ProcessWorker",
    "RayWorkers",
    "Run",
    "RunConfig",
    "RunRequest",
    "RunStore",
    "RungScore",
    "State",
    "Tally",
    "TimeLeft",
    "Workers",
    "carry_out",
    "configure",
    "driver_url",
    "goes_on",
    "load_run",
    "make_settings",
    "open_run",
    "restore_run",
]
