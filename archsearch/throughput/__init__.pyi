from .backends.load import runtime_facts
from .bench import BenchTask, bench_document, bench_task
from .calibration.calibrate import CalibrateRequest, calibration_plan
from .calibration.calibration import TRUSTED_TAU, Calibration, fit_calibration
from .calibration.file import calibration_path, load_calibration, read_calibration, save_calibration
from .calibration.interpolation import left_out_errors
from .calibration.key import CalibrationKey
from .calibration.plan import CalibrationPlan
from .calibration.predictor import find_predictor
from .compile_pool import CompilePool, pool_size
from .compiler import compile_ahead, keep_progress_bars_here
from .measurement import Measurement
from .protocol import Mode, Precision, Protocol, Runtime, Task
from .runtimes import against_runtime_document, runtime_options
from .throughput import CompileError, InfeasibleError, Throughput, measure

__all__ = [
    "TRUSTED_TAU",
    "BenchTask",
    "CalibrateRequest",
    "Calibration",
    "CalibrationKey",
    "CalibrationPlan",
    "CompileError",
    "CompilePool",
    "InfeasibleError",
    "Measurement",
    "Mode",
    "Precision",
    "Protocol",
    "Runtime",
    "Task",
    "Throughput",
    "against_runtime_document",
    "bench_document",
    "bench_task",
    "calibration_path",
    "calibration_plan",
    "compile_ahead",
    "find_predictor",
    "fit_calibration",
    "keep_progress_bars_here",
    "left_out_errors",
    "load_calibration",
    "measure",
    "pool_size",
    "read_calibration",
    "runtime_facts",
    "runtime_options",
    "save_calibration",
]
