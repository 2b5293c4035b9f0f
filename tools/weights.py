"""Weights in memory: a frozen reference to swap in, and how far training has moved them.

Both work on any model with `named_parameters()`, peft's among them, and on the engine's
adapters, whose factors are named as peft names them.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from tools.adapter_keys import belongs_to_another, file_keys
from tools.errors import AdapterFileError, WeightsError

if TYPE_CHECKING:
    import torch

__all__ = ["LoraReferenceSnapshot", "WeightDeltaTracker"]

_LOG = logging.getLogger(__name__)
_NAMED: Final = 5
_INSTALL: Final = (
    "; install it in the training environment: pip install 'bakehouse[train]'"
    " (the containers of NeMo, Triton and PyTorch have it)"
)
# Parameters that some swap holds, by identity: two swaps of one would restore the wrong values.
_SWAPPED: Final[set[int]] = set()
_SWAP_LOCK: Final = threading.Lock()


class WeightDeltaTracker:
    """Keeps a copy of the parameters that are trainable now, to say later how far they moved.

    Raises:
        ImportError: torch is not installed.
    """

    def __init__(self, model: Any) -> None:
        _import_torch("WeightDeltaTracker")
        self._model = model
        self._before = {name: _copy(parameter) for name, parameter in _trainable(model)}

    def __len__(self) -> int:
        """The number of tensors that were copied."""
        return len(self._before)

    def delta(self) -> tuple[float, float]:
        """Return the L2 norm and the largest absolute value of all changes since.

        Differences are taken in float32, or float64 for such parameters. Where a weight is NaN, or a
        change is not a number, both are NaN. Without a trainable parameter both are 0.0.

        Raises:
            WeightsError: a parameter of then is gone or has another shape.
        """
        torch = _import_torch("WeightDeltaTracker")
        now = dict(_parameters(self._model))
        norms, largest = [0.0], [0.0]
        for name, before in self._before.items():
            parameter = now.get(name)
            if parameter is None or parameter.shape != before.shape:
                found = "gone" if parameter is None else f"of shape {tuple(parameter.shape)}"
                raise WeightsError(f"{name} is {found}; it was {tuple(before.shape)}. Track the new model")
            wide = torch.promote_types(before.dtype, torch.float32)
            change = parameter.detach().to("cpu", wide) - before.to(wide)
            if change.numel():
                # In float64, since the squares of small changes vanish in float32.
                norms.append(torch.linalg.vector_norm(change, dtype=torch.float64).item())
                largest.append(change.abs().max().item())
        if any(map(math.isnan, norms)) or any(map(math.isnan, largest)):
            return math.nan, math.nan
        return math.hypot(*norms), max(largest)


class LoraReferenceSnapshot:
    """A copy of an adapter on the CPU that takes the place of the live one for a `with` block.

    The block runs without gradients, and the live values are back, bit for bit, when it ends,
    however it ends. A graph built before the block can still be run backward after it.

    Attributes:
        skipped: Keys of the snapshot that fit no parameter of the model.
        missing: Trainable parameters that the snapshot lacks, and that a swap leaves as they are.

    Args:
        snapshot: Tensors by the live parameters' names; the trainable parameters as they are
            now, where not given.
        allow_unmatched: Skip keys that fit no parameter, and say how many in the log.
    Raises:
        ImportError: torch is not installed.
        WeightsError: a key fits no parameter, or a tensor has another shape than its parameter.
    """

    def __init__(
        self,
        model: Any,
        *,
        snapshot: Mapping[str, torch.Tensor] | None = None,
        allow_unmatched: bool = False,
    ) -> None:
        _import_torch("LoraReferenceSnapshot")
        self._model = model
        if snapshot is None:
            self._snapshot = {name: _copy(parameter) for name, parameter in _trainable(model)}
        else:
            self._snapshot = dict(snapshot)
        self._swap: contextlib.ExitStack | None = None
        live = dict(_parameters(model))
        self.skipped = tuple(sorted(self._snapshot.keys() - live.keys()))
        self.missing: tuple[str, ...] = ()
        if self.skipped:
            _report(f"{_some(self.skipped)} of the snapshot fit no parameter", allowed=allow_unmatched)
        for name in self.skipped:
            del self._snapshot[name]
        for name, tensor in self._snapshot.items():
            _check_shape(name, tensor, live[name])

    @classmethod
    def from_disk(
        cls,
        model: Any,
        adapter_dir: str | Path,
        *,
        adapter_name: str = "default",
        weights_filename: str = "adapter_model.safetensors",
        allow_unmatched: bool = False,
    ) -> Self:
        """Read the reference from a peft adapter's folder.

        Args:
            adapter_name: The live adapter that it stands in for.
            allow_unmatched: Skip tensors that fit no trainable parameter, and leave trainable
                parameters that the file lacks as they are; both are counted in the log and
                named in `skipped` and `missing`.
        Raises:
            AdapterFileError: there is no such file.
            ImportError: torch or safetensors is not installed.
            WeightsError: the file cannot be read, a tensor fits no trainable parameter or has
                another shape, or a trainable parameter has no tensor.
        """
        _import_torch("LoraReferenceSnapshot")
        path = Path(adapter_dir) / weights_filename
        tensors = _load_tensors(path)
        snapshot: dict[str, Any] = {}
        missing: list[str] = []
        used: set[str] = set()
        for names, parameter in _aliases(model, adapter_name):
            keys = [key for name in names for key in file_keys(name, adapter_name) if key in tensors]
            used.update(keys)
            if keys:
                _check_shape(keys[0], tensors[keys[0]], parameter)
                snapshot[names[0]] = tensors[keys[0]]
            else:
                missing.append(names[0])
        skipped = sorted(tensors.keys() - used - _copies_of_the_base(model, tensors))
        if skipped:
            _report(
                f"{_some(skipped)} of {path} fit no trainable parameter of adapter {adapter_name!r}",
                allowed=allow_unmatched,
            )
        if missing:
            _report(f"{_some(missing)} are trainable and have no tensor in {path}", allowed=allow_unmatched)
        reference = cls(model, snapshot=snapshot)
        reference.skipped, reference.missing = tuple(skipped), tuple(missing)
        return reference

    def __len__(self) -> int:
        """The number of tensors in the snapshot."""
        return len(self._snapshot)

    def __enter__(self) -> Self:
        """Put the snapshot into the model.

        Raises:
            WeightsError: a swap of the same parameters is active, or a parameter cannot be
                written; then all are as they were.
        """
        torch = _import_torch("LoraReferenceSnapshot")
        if self._swap is not None:
            raise WeightsError("this snapshot is swapped in already; nested swaps are refused")
        live = dict(_parameters(self._model))
        gone = sorted(self._snapshot.keys() - live.keys())
        if gone:
            raise WeightsError(f"{_some(gone)} of the snapshot are no longer in the model; take a new one")
        with contextlib.ExitStack() as swap:
            parameters = {name: live[name] for name in self._snapshot}
            swap.enter_context(_sole_swap(parameters.values()))
            for name, parameter in parameters.items():
                _check_shape(name, self._snapshot[name], parameter)
                if parameter.device.type == "meta":
                    raise WeightsError(f"{name} is offloaded (meta device); keep the adapter in memory")
            before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
            for name, parameter in parameters.items():
                swap.callback(_write, parameter, before[name])
                _write(parameter, self._snapshot[name])
            swap.enter_context(torch.no_grad())
            self._swap = swap.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        swap, self._swap = self._swap, None
        if swap is not None:
            swap.close()


def _write(parameter: torch.Tensor, value: torch.Tensor) -> None:
    # Through .data, which leaves the version counter alone: the values come back unchanged, so a
    # graph that was built before the swap is still right.
    parameter.data.copy_(value)


@contextlib.contextmanager
def _sole_swap(parameters: Iterable[Any]) -> Iterator[None]:
    """Hold parameters for one swap."""
    mine = {id(parameter) for parameter in parameters}
    with _SWAP_LOCK:
        if mine & _SWAPPED:
            raise WeightsError("another snapshot is swapped into this model; nested swaps are refused")
        _SWAPPED.update(mine)
    try:
        yield
    finally:
        with _SWAP_LOCK:
            _SWAPPED.difference_update(mine)


def _parameters(model: Any, *, aliases: bool = False) -> Iterable[tuple[str, Any]]:
    """Yield names and parameters of a model, or of one or several of the engine's adapters."""
    if hasattr(model, "named_parameters"):
        yield from model.named_parameters(remove_duplicate=not aliases)
        return
    for adapter in [model] if hasattr(model, "pairs") else model:
        for path, pair in adapter.pairs.items():
            yield f"base_model.model.{path}.lora_A.{adapter.name}.weight", pair.a_R_I
            yield f"base_model.model.{path}.lora_B.{adapter.name}.weight", pair.b_O_R


def _trainable(model: Any) -> Iterable[tuple[str, Any]]:
    return ((name, parameter) for name, parameter in _parameters(model) if parameter.requires_grad)


def _aliases(model: Any, adapter_name: str) -> list[tuple[list[str], Any]]:
    """Return the trainable parameters, other adapters' aside, each with all names it has."""
    names: dict[int, list[str]] = {}
    parameters: dict[int, Any] = {}
    for name, parameter in _parameters(model, aliases=True):
        if parameter.requires_grad and not belongs_to_another(name, adapter_name):
            names.setdefault(id(parameter), []).append(name)
            parameters[id(parameter)] = parameter
    return [(names[key], parameters[key]) for key in names]


def _copies_of_the_base(model: Any, tensors: Mapping[str, Any]) -> set[str]:
    """Return the keys whose tensors are the base's own, as peft saves them with some adapters."""
    frozen = {name: value for name, value in _parameters(model, aliases=True) if not value.requires_grad}
    return {key for key, tensor in tensors.items() if key in frozen and _is_same(frozen[key], tensor)}


def _is_same(parameter: Any, tensor: Any) -> bool:
    """Say whether the two are equal in the precision of one of them."""
    if parameter.shape != tensor.shape:
        return False
    value = parameter.detach().to("cpu")
    return any(bool((value.to(kind) == tensor.to(kind)).all()) for kind in (value.dtype, tensor.dtype))


def _copy(parameter: Any) -> Any:
    return parameter.detach().to("cpu", copy=True)


def _check_shape(name: str, tensor: Any, parameter: Any) -> None:
    if tensor.shape != parameter.shape:
        raise WeightsError(f"{name} is {tuple(tensor.shape)}; the model needs {tuple(parameter.shape)}")


def _report(problem: str, *, allowed: bool) -> None:
    if not allowed:
        raise WeightsError(f"{problem}; load the adapter it was made for, or pass allow_unmatched=True")
    _LOG.warning("%s; left out", problem)


def _load_tensors(path: Path) -> dict[str, Any]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as err:
        raise ImportError(f"LoraReferenceSnapshot.from_disk needs safetensors{_INSTALL}") from err
    if not path.is_file():
        raise AdapterFileError(f"no adapter weights at {path}")
    try:
        return load_file(path)
    except (OSError, SafetensorError) as err:
        raise WeightsError(f"{path} cannot be read: {err}; a whole .safetensors file is needed") from err


def _import_torch(what: str) -> Any:
    try:
        import torch
    except ImportError as err:
        raise ImportError(f"{what} needs torch{_INSTALL}") from err
    return torch


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    return f"{len(listed)} tensors ({', '.join(listed[:_NAMED])}{more})"
