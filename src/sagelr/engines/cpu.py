"""The step on a CPU in one pass over memory: `cpu_kernel.cpp`, compiled when it is first needed.

The kernel has a plain C interface and is built by calling the compiler on that one file, which
takes a second or two; torch's extension tools would add ninja, torch's headers and half a minute,
and bind the result to one release of torch. It shares torch's OpenMP threads. Builds are kept in
the user's cache folder. Where there is no compiler or it fails, and for what the kernel cannot
take, the eager engine steps in. That is said once: as a warning where `fused=True` asked for this
engine, there is no compiler or it fails, else as information.
"""

from __future__ import annotations

import array
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sagelr import bases
from sagelr.cache import kept
from sagelr.engines import eager
from sagelr.engines.plan import DECAYS, Place, Plan, State, not_plain, pick, unlike
from sagelr.state import codes, formats

logger = logging.getLogger("sagelr")

SOURCE = Path(__file__).with_name("cpu_kernel.cpp")
HEADERS = [Path(__file__).with_name(name) for name in ("cpu_state.h", "cpu_lanes.h")]
# No -ffast-math: it would flush small floats to zero in the whole process, and sensitivities are
# small. What is allowed: sqrt need not set errno, comparisons may be made early, and a product and
# a sum may be one instruction.
FLAGS = (
    "-O3",
    "-march=native",
    "-std=c++17",
    "-fPIC",
    "-shared",
    "-fopenmp",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
)
PARAM = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
BASES = {bases.AdamW: 0, bases.Adamax: 1, bases.SGD: 2}


class _Options(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_double) for name in (
            "lr", "weight_decay", "beta1", "beta2", "eps", "momentum", "dampening", "beta0",
            "sage_eps",
        )),
        *((name, ctypes.c_int64) for name in (
            "bias_correction", "sage_bias_correction", "maximize", "nesterov", "seed",
            "threads",
        )),
    ]  # fmt: skip


def why_not(plan: Plan, params: Sequence[Tensor], grads: Sequence[Tensor]) -> str | None:
    """Why this engine cannot take the step; None if it can."""
    if torch.compiler.is_compiling():
        return "torch.compile traces the step"
    if plan.differentiable:
        return "the step must be differentiable"
    if type(plan.base) not in BASES:
        return f"it has no {type(plan.base).__name__}"
    if params[0].dtype not in PARAM:
        return f"parameters are {params[0].dtype}"
    if plan.coded and params[0].dtype == torch.float64:
        return "8-bit state is for narrower parameters than float64"
    dtype = params[0].dtype
    if any(grad.dtype != dtype for grad in grads):
        return f"a gradient is not {dtype}, as its parameter is"
    if other := not_plain(params, grads):
        return other
    return _missing(_kind(plan, dtype))


def update(
    plan: Plan,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    state: State,
    places: Sequence[Place],
) -> None:
    """Take one step on every parameter, in place; all on the CPU and of one dtype."""
    apart = _apart(plan, params, grads, state, places)
    if apart:
        eager.update(plan, *pick(apart, params, grads, state, places))
        others = sorted(set(range(len(params))) - set(apart))
        params, grads, state, places = pick(others, params, grads, state, places)
    if not params:
        return
    torch.autograd.graph.increment_version(params)  # what torch cannot see from outside
    # An array takes numbers from map without a Python loop: with thousands of tensors, filling the
    # table is most of what a step costs outside the kernel.
    table = array.array("q")
    nothing = bytes(table.itemsize * len(params))
    for column in _columns(plan, params, grads, state):
        if column is None:
            table.frombytes(nothing)
        else:
            table.extend(map(Tensor.data_ptr, column))
    table.extend(map(Tensor.numel, params))
    if plan.coded:
        table.extend(param.shape[1:].numel() for param in params)
    else:
        table.frombytes(nothing)
    table.extend(place.parameter for place in places)
    table.extend(place.offset for place in places)
    address, _ = table.buffer_info()
    kernel = _kernel(_kind(plan, params[0].dtype))
    kernel(ctypes.byref(_options(plan)), address, len(params))


def _apart(
    plan: Plan,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    state: State,
    places: Sequence[Place],
) -> list[int]:
    """Which of them the kernel cannot take: it walks memory in order."""
    apart = unlike(plan, params, grads, state)
    if plan.coded:
        # It takes a row of codes with one key of the random bits, which changes at 2^32 elements.
        apart |= {
            i
            for i, (param, place) in enumerate(zip(params, places, strict=True))
            if place.offset + param.numel() > 1 << 32 and param.shape[1:].numel() % codes.BLOCK
        }
    return sorted(apart)


def _columns(
    plan: Plan, params: Sequence[Tensor], grads: Sequence[Tensor], state: State
) -> list[Sequence[Tensor] | None]:
    """The tensors of the kernel's struct Tensor, in its order; None where there is none."""
    averages = plan.averages()
    scales = [name + formats.SCALE if name and plan.coded else None for name in averages]
    counts = ["step", "sensitivity_step" if plan.sage else None]
    columns = [state[name] if name else None for name in (*averages, *scales, *counts)]
    return [params, grads, *columns]


def _options(plan: Plan) -> _Options:
    options = _Options(
        lr=float(plan.lr),
        weight_decay=plan.weight_decay,
        beta0=plan.beta0,
        sage_eps=plan.sage_eps,
        sage_bias_correction=plan.sage_bias_correction,
        maximize=plan.maximize,
        seed=plan.seed,
        threads=torch.get_num_threads(),
    )
    for option, value in vars(plan.base).items():
        setattr(options, option, value)
    return options


def _kind(plan: Plan, dtype: torch.dtype) -> tuple[tuple[str, int], ...]:
    """The macros that make the kernel for this kind of update."""
    base = BASES[type(plan.base)]
    if isinstance(plan.base, bases.SGD) and not plan.base.momentum:
        base += 1
    return (
        ("BASE", base),
        ("SAGE", int(plan.sage)),
        ("PARAM", PARAM[dtype]),
        ("DECAY", DECAYS.index(plan.decay)),
        ("PARAM_CHANCE", int(plan.rounding == "stochastic" and dtype == torch.bfloat16)),
        *zip(("FIRST", "SECOND", "SENSITIVITY"), plan.stored_as(), strict=True),
    )


# -- building --------------------------------------------------------------------------------------

NO_COMPILER = "there is no C++ compiler for it (it is for Linux: g++, clang++ or what CXX names)"


@functools.cache
def compiler() -> tuple[str, ...] | None:
    """The C++ compiler to use, as the words of a command: $CXX, else g++ or clang++; or None."""
    if platform.system() != "Linux":  # elsewhere the compilers differ in how they do OpenMP
        return None
    named = shlex.split(os.environ.get("CXX", ""))  # may be "ccache g++"
    for name, *options in [named] if named else [["g++"], ["clang++"]]:
        found = shutil.which(name)
        if found:
            return (found, *options)
    return None


@functools.cache
def _missing(kind: tuple[tuple[str, int], ...]) -> str | None:
    """Why there is no kernel of a kind; None if there is, made now if need be."""
    if not compiler():
        return NO_COMPILER
    try:
        _kernel(kind)
    except (OSError, RuntimeError) as error:
        logger.warning("the fused CPU step cannot be had, the eager one is taken: %s", error)
        return "building it failed, as was told"
    return None


@functools.cache
def _kernel(kind: tuple[tuple[str, int], ...]) -> Callable[..., None]:
    library = ctypes.CDLL(str(_build(kind)))
    step = library.sagelr_step
    step.argtypes = (ctypes.POINTER(_Options), ctypes.c_void_p, ctypes.c_int64)
    step.restype = None
    return step


def _build(kind: tuple[tuple[str, int], ...]) -> Path:
    """The compiled kernel of a kind, from the cache or made now.

    Raises:
        RuntimeError: the compiler failed.
    """
    cxx = compiler()
    assert cxx is not None
    defines = [f"-D{name}={value}" for name, value in kind]
    recipe = (
        SOURCE.read_text(),
        *(header.read_text() for header in HEADERS),
        *cxx,
        _version(cxx),
        _processor(),
        *FLAGS,
        *defines,
    )
    digest = hashlib.sha256("\0".join(recipe).encode()).hexdigest()[:20]

    def make(path: Path) -> None:
        logger.info("compiling the fused CPU step into %s", path)
        command = [*cxx, *FLAGS, *defines, str(SOURCE), "-o", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr.strip()[:2000]}")

    return kept(f"step-{digest}.so", make)


@functools.cache
def _version(cxx: tuple[str, ...]) -> str:
    done = subprocess.run([*cxx, "--version"], capture_output=True, text=True, check=False)
    return done.stdout


@functools.cache
def _processor() -> str:
    """What -march=native depends on: a cache folder may be shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    kinds = ("flags", "Features", "model name", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(kinds)}))
