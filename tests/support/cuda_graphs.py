"""CUDA graphs without a GPU: what is captured is a list of aten ops and kernel launches, and a replay runs these alone.

    with emulated_graphs(monkeypatch):
        graph = captured(forward)
        graph.replay()

With a GPU, the graphs are real. Without one, what a GPU would refuse or spoil is refused or spoilt here. Inside a
capture nothing is computed: what comes out is NaN, and what is changed in place stays as it was. Waiting for the device
there, or making a tensor on the host, which would have to be copied to the device, is an error. A replay reads and
writes the very tensors of the capture; fresh memory holds NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from dlp_core.attention import triton as attention_module
from dlp_core.fusion import triton as op_module
from tests.support.op_bank import DEVICE

_WAITS = frozenset(
    {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero", "aten::masked_select"}
)
_ATTENTION = ("prefill", "store", "decode", "combine")
_FROM_HOST = frozenset({"aten::lift_fresh", "aten::pin_memory", "aten::_pin_memory"})


class Launch(NamedTuple):
    """A launch as the driver sees it: addresses and sizes, whatever they held."""

    kernel: str
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    """Numbers as they are, tensors as (shape, strides)."""
    constants: tuple[tuple[str, Any], ...]


class Graph:
    """One captured graph."""

    capturing: ClassVar[Graph | None] = None

    def __init__(self) -> None:
        self.launches: list[Launch] = []
        self._work: list[Callable[[], object]] = []
        self._branch: list[Callable[[], object]] = []
        self._forked = False

    @contextmanager
    def capture(self) -> Iterator[None]:
        if Graph.capturing is not None:
            raise RuntimeError("a capture is under way on this device")
        Graph.capturing = self
        try:
            with _Recording(self):
                yield
            if self._branch:
                raise RuntimeError("capture ends with work on a stream that the capturing stream has not joined")
        finally:
            Graph.capturing = None

    @contextmanager
    def fork(self) -> Iterator[None]:
        """What is recorded goes to a branch. It is run as late as a GPU may run it, when the branch is joined."""
        self._forked = True
        try:
            yield
        finally:
            self._forked = False

    def join(self) -> None:
        self._work += self._branch
        self._branch = []

    def replay(self) -> None:
        if Graph.capturing is not None:
            raise RuntimeError("a graph cannot be replayed inside a capture")
        for work in self._work:
            work()

    def record(self, work: Callable[[], object]) -> None:
        (self._branch if self._forked else self._work).append(work)

    def reset(self) -> None:
        self._work.clear()


class _Recording(TorchDispatchMode):
    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._graph = graph

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        if name in _WAITS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        if name in _FROM_HOST:
            raise RuntimeError(f"{name} inside a capture: what it copies from the host would never change again")
        if name.startswith("dlp::"):  # of Python's, recorded as what it does
            with self:
                return func._op_dk(torch._C.DispatchKey.CPU, *args, **kwargs)
        if func._schema.is_mutable:
            self._graph.record(lambda: func(*args, **kwargs))
            return kwargs.get("out", args[0]) if func._schema.returns else None
        results = func(*args, **kwargs)
        known = {_storage(tensor) for tensor in _tensors((args, kwargs))}
        fresh = [(i, tensor) for i, tensor in enumerate(_tensors(results)) if _storage(tensor) not in known]
        for _, tensor in fresh:
            _spoil(tensor)
        if fresh:
            self._graph.record(lambda: self._run_again(func, args, kwargs, fresh))
        return results

    @staticmethod
    def _run_again(func: Any, args: Any, kwargs: Any, fresh: list[tuple[int, Tensor]]) -> None:
        results = _tensors(func(*args, **kwargs))
        for i, tensor in fresh:
            if func._schema.name.startswith("aten::empty"):
                _spoil(tensor)
            else:
                tensor.copy_(results[i])


def captured(forward: Callable[[], object]) -> Any:
    """A graph of this pass, captured as engines do it: after a pass that warms up."""
    if DEVICE.type == "cpu":
        forward()
        graph = Graph()
        with graph.capture():
            forward()
        return graph
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        forward()  # compiles
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        forward()
    return graph


@contextmanager
def emulated_graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes the ops for CUDA devices launch into the graph that is being captured, if one is. Nothing, on a GPU."""
    if DEVICE.type != "cpu":
        yield
        return
    with monkeypatch.context() as patches:
        for module, names in ((op_module, ("shrink", "expand")), (attention_module, _ATTENTION)):
            for name in names:
                patches.setattr(module, name, _Launcher(name, getattr(module, name)))
        patches.setattr(op_module, "_capturing", lambda device: Graph.capturing is not None)
        patches.setattr(op_module, "Branch", _Branch)
        yield


@contextmanager
def emulated_engine_graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`emulated_graphs`, and a transformers that captures them in its continuous batching."""
    from transformers.generation.continuous_batching import initialization, model_runner

    with emulated_graphs(monkeypatch), monkeypatch.context() as patches:
        if DEVICE.type == "cpu":
            patches.setattr(initialization, "get_accelerator_graph_name", lambda: "Graph")
            patches.setattr(model_runner, "get_memory_pools", lambda: (None, 0))
            patches.setattr(model_runner, "memory_pool_context", lambda pool: nullcontext())
            patches.setattr(model_runner, "create_accelerator_graph", Graph)
            patches.setattr(model_runner, "accelerator_graph_capture_context", lambda graph, **_: graph.capture())
        yield


class _Branch:
    """The second stream, which is one only in a capture."""

    def __init__(self, device: torch.device) -> None:
        pass

    def fork(self) -> AbstractContextManager[None]:
        return nullcontext() if Graph.capturing is None else Graph.capturing.fork()

    def join(self) -> None:
        if Graph.capturing is not None:
            Graph.capturing.join()


class _Launcher:
    def __init__(self, name: str, kernel: Any) -> None:
        self._name = name
        self._kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **constants: Any) -> None:
            graph = Graph.capturing
            if graph is None:
                self._kernel[grid](*args, **constants)
                return
            shown = tuple((tuple(a.shape), a.stride()) if isinstance(a, Tensor) else a for a in args)
            graph.launches.append(Launch(self._name, grid, shown, tuple(sorted(constants.items(), key=lambda c: c[0]))))
            graph.record(lambda: self._kernel[grid](*args, **constants))

        return launch


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _spoil(tensor: Tensor) -> None:
    if tensor.is_floating_point():
        tensor.fill_(float("nan"))
