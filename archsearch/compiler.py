"""torch.compile on this machine: whether it can run, code of its own for what is compiled, and its failures in words."""

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path
from types import FunctionType
from typing import TypeVar

Function = TypeVar("Function")

_PACKAGES = ("torch._dynamo", "torch._inductor", "triton")


def compiler_problem(device: str) -> str | None:
    """Why torch.compile cannot make code for a device of this type here, in words; None where nothing that it needs is missing.

    Looks for its parts and runs none of them, which costs milliseconds: a compiler that is there and fails is found by the first network.
    """
    if device == "mps":  # torch makes Metal shaders, by the driver
        return None
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    # For the device's launchers Triton needs a C compiler, for a CPU torch a C++ one; both build against Python.
    variable, usual = ("CC", ("gcc", "clang")) if device == "cuda" else ("CXX", ("g++", "clang++", "cl"))
    named = os.environ.get(variable)
    if not any(map(shutil.which, [named] if named else usual)):
        return f"there is no {'C' if device == 'cuda' else 'C++'} compiler ({named or ' or '.join(usual)})"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        return "Python's headers are not installed (Python.h)"
    return None


def with_own_code(function: Function) -> Function:
    """The function, its code a copy: the compiler limits the graphs of a code, which all functions made by one `def` share."""
    assert isinstance(function, FunctionType)
    function.__code__ = function.__code__.replace()
    return function


def is_compile_error(error: BaseException) -> bool:
    """Whether an error is torch.compile's."""
    # By modules, whose import takes over a second where nothing is compiled.
    return any(kind.__module__.startswith(_PACKAGES) for kind in type(error).__mro__)


def cause_of(error: BaseException) -> BaseException:
    """The error that stopped the compiler, which wraps it."""
    return getattr(error, "inner_exception", error) or error
