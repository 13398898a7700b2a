"""Where and how something is computed: device, threads, memory, and the same bits each time."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
from joblib import Parallel, delayed
from threadpoolctl import threadpool_limits

from simba_lab.core.border import checks_arguments
from simba_lab.core.checks import Positive, Threads
from simba_lab.core.errors import SimbaError
from simba_lab.core.network_adapter import copied, eager, unwrapped

T = TypeVar("T")
Module = TypeVar("Module", bound=torch.nn.Module)

# Sums in a different order round differently: the number of threads is part of the arithmetic, so
# it is fixed.
THREADS = 2
_chosen: ContextVar[int | None] = ContextVar("threads of the surrounding computation", default=None)


@checks_arguments
@dataclass(frozen=True)
class Compute:
    """Where a function runs, on how many threads, and how much memory it may take.

    Parameters
    ----------
    device : str
        ``"auto"`` for a GPU if there is one, or a device of PyTorch: ``"cpu"``, ``"cuda:1"``.
    threads : int, optional
        Of PyTorch on the processor. Sums in another order round differently, so results are the
        same to the last bit only with the same number. By default that of the surrounding
        computation, or 2.
    memory_gb : float, optional
        What may be kept in memory; the rest is spooled to temporary files, or made again. Each
        function has a default of its own.

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.Compute(memory_gb=0.5)
    Compute(device='auto', threads=None, memory_gb=0.5)
    """

    device: str = "auto"
    threads: Threads | None = None
    memory_gb: Positive | None = None

    def memory(self, default_gb: float) -> float:
        """Return the memory that was allowed, in GB, or what a function takes by default."""
        return default_gb if self.memory_gb is None else self.memory_gb

    def torch_device(self) -> torch.device:
        """Return the device, or raise an error if PyTorch does not find it here."""
        return torch_device(self.device)

    def placed(self, model: torch.nn.Module) -> tuple[torch.nn.Module, torch.device, torch.dtype]:
        """Return the network on the device (a copy, if it is not there), device and precision.

        It comes out of its wrappers, such as DataParallel or what `torch.compile` returns.
        """
        device, network = self.torch_device(), unwrapped(model)
        tensors = (*network.parameters(), *network.buffers())
        elsewhere = any(value.device.type != "cpu" for value in tensors)
        without_gradients = torch.is_grad_enabled() and any(x.is_inference() for x in tensors)
        if device.type != "cpu" or elsewhere or without_gradients:
            network = copied(network).to(device)
        dtypes = (value.dtype for value in network.parameters() if value.is_floating_point())
        return network, device, next(dtypes, torch.float32)


def torch_device(name: str) -> torch.device:
    """Return the device of a name; ``auto`` is a GPU if there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        remedy = str(error).split("\n")[0]
        allowed = "cpu, auto, or a device that PyTorch finds here"
        raise SimbaError("device", name, allowed, remedy) from error
    return device


def in_threads(function: Callable[..., T], jobs: Iterable[tuple[Any, ...]]) -> list[T]:
    """Return the results of a function for several tuples of arguments, such as a layer each.

    Decompositions take one thread each: their rounding then does not depend on the machine's number
    of cores.
    """
    with threadpool_limits(1):
        results = Parallel(n_jobs=-1, prefer="threads")(delayed(function)(*job) for job in jobs)
    return list(results)


# Parameters of glibc's mallopt, and the largest values that its own adaptation would reach.
TRIM, MMAP, LARGEST = -1, -3, 32 * 2**20


@cache
def _keep_freed_memory() -> None:
    """Let the C library keep the memory that tensors free, so that it need not ask for it again.

    A training step of small volumes is a fifth faster with it; no result depends on it. At most 64
    MiB are kept.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # glibc alone has it
        library.mallopt(TRIM, 2 * LARGEST)
        library.mallopt(MMAP, LARGEST)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put a network in evaluation mode, and each of its parts back to the mode that it had.

    Code that `torch.compile` made is not used meanwhile, so that hooks on layers run. Parts that
    name a `layout` have their weights in it: on a processor the networks of the lab answer in half
    the time.
    """
    before = {module: module.training for module in model.modules()}
    weights = _weights_with_layout(model)
    model.eval()
    try:
        for weight, values, layout in weights:
            weight.data = values.contiguous(memory_format=layout)
        with eager():
            yield
    finally:
        for weight, values, _ in weights:
            weight.data = values
        for module, training in before.items():
            module.training = training


def _weights_with_layout(
    model: Module,
) -> list[tuple[torch.nn.Parameter, torch.Tensor, torch.memory_format]]:
    """Return the weights of convolutions whose network names a layout, their values, and it."""
    weights = []
    for module in model.modules():
        layout = getattr(module, "layout", None)
        if isinstance(layout, torch.memory_format):
            weights += [
                (weight, weight.data, layout)
                for weight in module.parameters()
                if weight.ndim == 5 and weight.device.type == "cpu" and not weight.is_inference()
            ]
    return weights


def laid_out(model: Module, layout: torch.memory_format) -> Module:
    """Return a network whose weights have this layout in memory."""
    return model.to(memory_format=layout)  # type: ignore[call-overload,no-any-return]


@contextmanager
def deterministic(threads: int | None = None) -> Iterator[None]:
    """Run torch with a fixed number of threads and deterministic kernels, on any machine.

    Parameters
    ----------
    threads : int, optional
        By default as many as the surrounding ``deterministic`` has, or `THREADS`.
    """
    _keep_freed_memory()
    threads = threads or _chosen.get() or THREADS
    before = (
        torch.get_num_threads(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
    )
    token = _chosen.set(threads)
    torch.set_num_threads(threads)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        _chosen.reset(token)
        torch.set_num_threads(before[0])
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before[1:]
