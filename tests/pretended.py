"""A GPU that is not there: PyTorch's fake tensors have a device, shapes and strides and no numbers, so a step can be run "on cuda"
on any machine. What would make the host wait for a real GPU is an error here.

Fake tensors know neither a backward pass without a driver nor every fused operation; `backward` and `_Watch` stand in for these.
"""

import contextlib
import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from univip_stream import augment

CUDA = torch.device("cuda", 0)


_LOOKS_AT_NUMBERS = (
    "multinomial",
    "_linalg_eigh",
    "_linalg_svd",
    "linalg_inv_ex",
    "linalg_cholesky_ex",
    "_linalg_check_errors",
)
"""Operations that ask a GPU whether all went well, and that fake tensors let through."""
_FREE = ("detach", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view")


class HostWaitsError(AssertionError):
    """The host would wait for the GPU, or the GPU for the host."""


class _Watch(TorchDispatchMode):
    """Counts what is launched on the pretended GPU, and refuses copies that wait.

    Fake tensors themselves refuse `.item()`, `bool()`, `nonzero` and other shapes that depend on numbers. What they let through
    though it makes the host wait is refused here.
    """

    def __init__(self, pinned: set[int], *, copies_may_wait: bool) -> None:
        super().__init__()
        self.pinned = pinned
        self.launched: dict[str, int] = defaultdict(int)
        self.dtypes: set[tuple[str, torch.dtype]] = set()
        self.scattered: list[tuple[int, ...]] = []
        """Shapes of what came to a convolution in another layout than channels last."""
        self.moved = 0
        """Bytes that kernels on the GPU read and wrote: each tensor once, what is broadcast as it lies in memory."""
        self.copied = 0
        """Bytes from the host to the GPU."""
        self.copies_may_wait = copies_may_wait

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if name.startswith("_fused_"):  # all that a fused step asks of its tensors is that they fit
            assert {tensor.device for tensor in given} == {CUDA}
            assert all(a.shape == b.shape and a.stride() == b.stride() for a, b in zip(args[0], args[1], strict=True))
        if name == "_fused_sgd_":  # has no fake version
            self.launched[name] += 1
            return None
        if any(tensor.device.type == "cuda" for tensor in given) and (
            name in _LOOKS_AT_NUMBERS or _looks_for_places(name, args)
        ):
            raise HostWaitsError(f"{name}: it asks the GPU for numbers")
        result = func(*args, **kwargs)
        if name == "convolution":
            result = self._as_cudnn(result, *args[:2])
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if name in ("_to_copy", "copy_"):
            source, goal = (args[1], args[0]) if name == "copy_" else (args[0], result)
            patient = bool(args[2] if name == "copy_" and len(args) > 2 else kwargs.get("non_blocking", False))
            if source.device.type != goal.device.type:
                up = goal.device.type == "cuda"
                self.copied += up * source.numel() * source.element_size()
                # To the host, non_blocking gives numbers that are not there yet; nobody may look at them.
                if not self.copies_may_wait and not (up and patient):
                    raise HostWaitsError(f"{name}: {source.device} -> {goal.device}, non_blocking={patient}")
                # A driver may wait to copy memory that is not pinned; a single number goes with the launch.
                if not self.copies_may_wait and source.ndim and source.untyped_storage()._cdata not in self.pinned:
                    raise HostWaitsError(f"{name}: {tuple(source.shape)} made on the host in a step, which is not pinned")
        if any(tensor.device.type == "cuda" for tensor in [*given, *made]) and not _is_free(func):
            self.launched[name] += 1
            self.moved += sum(map(_bytes, [*given, *made]))
            self.dtypes |= {(name, tensor.dtype) for tensor in made}
        return result

    def _as_cudnn(self, result: Tensor, images: Tensor, weight: Tensor) -> Tensor:
        """Channels last if either input is, as cuDNN does; without a driver, PyTorch thinks that it has no bf16."""
        if not _is_last(images):
            self.scattered.append(tuple(images.shape))
        return torch.empty_like(result, memory_format=torch.channels_last) if _is_last(images) or _is_last(weight) else result


def _looks_for_places(name: str, args: Any) -> bool:
    """Whether an index is a mask, whose places must be counted, or lies on the host. Fake tensors refuse only to read by masks."""
    if name not in ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"):
        return False
    used = [index for index in args[1] if index is not None]
    masks = any(index.dtype in (torch.bool, torch.uint8) for index in used)
    number = (
        name != "index" and len(args) > 2 and args[2].ndim == 0 and args[2].device.type == "cpu"
    )  # fills, without counting
    return (masks and not number and name != "index") or any(index.device.type == "cpu" for index in used)


def _bytes(tensor: Tensor) -> int:
    sides = [side for side, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    return math.prod(sides) * tensor.element_size()


def _is_last(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last)


def _is_free(func: Any) -> bool:
    """Whether an operation only looks at its input in another way: no kernel."""
    return func.namespace == "prim" or func.is_view or func.overloadpacket.__name__ in _FREE


class PretendedGpu:
    """Within `running`: a machine with a GPU, as far as the step of a training sees it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fake = FakeTensorMode()
        self._pinned: list[Tensor] = []
        self._monkeypatch = monkeypatch
        # Autocast asks for a driver, and switches itself off without one.
        monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
        monkeypatch.setattr(Tensor, "backward", lambda loss, *_, **__: backward(loss))

    @contextlib.contextmanager
    def running(self, *, copies_may_wait: bool = False) -> Iterator[_Watch]:
        """Within: tensors are fake, and what would wait is an error."""
        watch = _Watch({tensor.untyped_storage()._cdata for tensor in self._pinned}, copies_may_wait=copies_may_wait)
        with self._monkeypatch.context() as patch, self.fake, watch:
            patch.setattr(Tensor, "__repr__", _printed)
            yield watch

    def place(self, module: nn.Module) -> nn.Module:
        """The module's tensors, on the GPU, with the strides that they have."""
        for child in module.modules():
            for name, value in child._parameters.items():
                if value is not None:
                    child._parameters[name] = nn.Parameter(self.like(value), requires_grad=value.requires_grad)
            for name, buffer in child._buffers.items():
                if buffer is not None:
                    child._buffers[name] = self.like(buffer)
        return module

    def like(self, tensor: Tensor, device: torch.device = CUDA) -> Tensor:
        """A fake tensor of the same shape, strides and type; on the host it is pinned, as the stream's are."""
        with self.fake:
            made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
        if device.type == "cpu":
            self._pinned.append(made)
        return made

    def close(self) -> None:
        """Forget what this module's caches hold of it."""
        for kept in (augment._constants, augment._shifts):
            kept.cache_clear()


def _printed(tensor: Tensor, **_: Any) -> str:
    raise HostWaitsError(f"__repr__: numbers of a tensor on {tensor.device} are printed")


def backward(loss: Tensor) -> None:
    """The gradient of a loss, node after node as autograd's engine goes, which needs a driver: the same nodes, the same kernels."""
    root = loss.grad_fn
    waiting: dict[Any, int] = defaultdict(int)
    seen, todo = {root}, [root]
    while todo:
        for after, _ in todo.pop().next_functions:
            if after is not None:
                waiting[after] += 1
                if after not in seen:
                    seen.add(after)
                    todo.append(after)
    gradients: dict[Any, dict[int, Tensor]] = {root: {0: torch.ones_like(loss)}}
    ready = [root]
    with torch.no_grad():
        while ready:
            node = ready.pop()
            mine = gradients.pop(node, {})
            if node.name().endswith("AccumulateGrad"):
                _add_up(node.variable, mine)
                continue
            given = [mine.get(number) for number in range(len(node._input_metadata))]
            results = _run(node, given) if mine else (None,) * len(node.next_functions)
            for (after, number), result in zip(node.next_functions, results, strict=True):
                if after is None:
                    continue
                if result is not None:
                    result = _fitted(result, after._input_metadata[number])
                    theirs = gradients.setdefault(after, {})
                    theirs[number] = theirs[number] + result if number in theirs else result
                waiting[after] -= 1
                if waiting[after] == 0:
                    ready.append(after)


def _fitted(gradient: Tensor, goal: Any) -> Tensor:
    """As the engine does it: what was broadcast is summed, what was cast is cast back."""
    assert gradient.device == goal.device
    if gradient.shape != torch.Size(goal.shape):
        gradient = gradient.sum_to_size(goal.shape)
    return gradient.to(goal.dtype)


def _add_up(parameter: Tensor, gradients: dict[int, Tensor]) -> None:
    for gradient in gradients.values():
        assert gradient.device == parameter.device
        assert gradient.shape == parameter.shape
        # Autograd keeps the parameter's strides, which the fused optimizer asks for.
        fitting = gradient if gradient.stride() == parameter.stride() else torch.empty_like(parameter).copy_(gradient)
        if parameter.grad is None:
            parameter.grad = fitting.detach()
        else:
            parameter.grad.add_(fitting)


def _run(node: Any, gradients: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    # A node of an operation that is written in Python, such as RoIAlign's, is called by another name.
    results = node(*gradients) if callable(node) else node.apply(*gradients)
    results = results if isinstance(results, tuple) else (results,)
    # ... and has results for what is no tensor, after the tensors.
    tensors = len(node.next_functions)
    assert all(result is None for result in results[tensors:])
    return results[:tensors]
