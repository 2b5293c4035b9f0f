"""Megatron-Bridge without a GPU: what is missing is stood in for, the rest is the real thing.

Stood in for: `transformer_engine` and `nvidia_resiliency_ext`, which the bridge imports and a
CPU cannot run; the parts of `torch.cuda` that it calls; the fused layers, by Megatron-Core's
own local ones; and the local layers' two norms in the Qwen3 mapping.
"""

from __future__ import annotations

import functools
import importlib
import sys
import types
from collections import defaultdict
from importlib.machinery import ModuleSpec
from typing import Any

_FIRST = (
    "megatron.core.models.gpt.gpt_model",
    "megatron.core.models.gpt.gpt_layer_specs",
    "megatron.core.distributed",
    "megatron.core.optimizer",
    "megatron.core.pipeline_parallel",
    "megatron.core.dist_checkpointing",
    "megatron.core.full_cuda_graph",
)
_THEN = (
    "megatron.bridge",
    "megatron.bridge.peft.lora",
    "megatron.bridge.training.setup",
    "megatron.bridge.training.pretrain",
    "megatron.bridge.training.mlm_compat.arguments",
)
_UNFUSED = (
    "persist_layer_norm",
    "masked_softmax_fusion",
    "bias_dropout_fusion",
    "bias_activation_fusion",
    "apply_rope_fusion",
    "gradient_accumulation_fusion",
    "cross_entropy_loss_fusion",
)


def install() -> None:
    """Import Megatron-Bridge so that it works here."""
    for name in _FIRST:
        importlib.import_module(name)
    for name in ("nvidia_resiliency_ext", "nvidia_resiliency_ext.inprocess"):
        sys.modules[name] = _empty_module(name)
    # Megatron-Core asks whether it is installed: gone again once the bridge has its names.
    engine = _empty_module("transformer_engine")
    inner = engine.pytorch
    sys.modules |= {"transformer_engine": engine, "transformer_engine.pytorch": inner}
    for name in _THEN:
        importlib.import_module(name)
    del sys.modules["transformer_engine"], sys.modules["transformer_engine.pytorch"]
    # The names are there without the package behind them.
    importlib.import_module("megatron.bridge.peft.utils").HAVE_TE = False  # type: ignore[attr-defined]
    _use_local_layers()
    _map_local_norms()
    _replace_cuda()


def local_layers(provider: Any) -> Any:
    """Return Megatron-Core's layers that need no Transformer Engine."""
    specs = importlib.import_module("megatron.core.models.gpt.gpt_layer_specs")
    return specs.get_gpt_layer_local_spec(
        qk_layernorm=provider.qk_layernorm, normalization=provider.normalization
    )


class _EmptyModule(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        import torch

        if name.startswith("__"):
            raise AttributeError(name)
        found: Any = _empty_module(f"{self.__name__}.{name}")
        if not name.islower():
            found = type(name, (torch.nn.Module,), {})
        setattr(self, name, found)
        return found


def _empty_module(name: str) -> Any:
    module = _EmptyModule(name)
    module.__spec__ = ModuleSpec(name, None, is_package=True)
    module.__path__ = []
    return module


def _use_local_layers() -> None:
    bridge = importlib.import_module("megatron.bridge").AutoBridge
    original = bridge.to_megatron_provider

    @functools.wraps(original)
    def to_megatron_provider(self: Any, *args: Any, **kwargs: Any) -> Any:
        provider = original(self, *args, **kwargs)
        provider.transformer_layer_spec = local_layers
        provider.transformer_impl = "local"
        for name in _UNFUSED:
            setattr(provider, name, False)
        return provider

    bridge.to_megatron_provider = to_megatron_provider


def _map_local_norms() -> None:
    bridge = importlib.import_module("megatron.bridge.models.qwen.qwen3_bridge").Qwen3Bridge
    mapping = importlib.import_module("megatron.bridge.models.conversion.param_mapping").AutoMapping
    registry = importlib.import_module("megatron.bridge.models.conversion.mapping_registry")
    original = bridge.mapping_registry
    layer = "layers.*."
    pairs = {
        f"decoder.{layer}input_layernorm.weight": f"model.{layer}input_layernorm.weight",
        f"decoder.{layer}pre_mlp_layernorm.weight": f"model.{layer}post_attention_layernorm.weight",
    }

    def mapping_registry(self: Any) -> Any:
        added = [mapping(megatron_param=ours, hf_param=theirs) for ours, theirs in pairs.items()]
        return registry.MegatronMappingRegistry(*original(self).mappings, *added)

    bridge.mapping_registry = mapping_registry


class _Nothing:
    """A stream or an event that has nothing to wait for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None

    def __enter__(self) -> _Nothing:
        return self

    def __exit__(self, *args: object) -> None: ...


def _replace_cuda() -> None:
    import torch
    import torch.distributed as dist

    class OnCpu(torch.overrides.TorchFunctionMode):
        """Makes on the CPU what is asked for on the GPU."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.Tensor.cuda:
                return args[0]
            if func is torch.Tensor.type and len(args) == 1:
                return func(*args).replace("torch.", "torch.cuda.")
            kwargs = dict(kwargs or {})
            if str(kwargs.get("device", "")).startswith("cuda"):
                kwargs["device"] = "cpu"
            if func is torch.Tensor.to:
                args = tuple("cpu" if str(one).startswith("cuda") else one for one in args)
            return func(*args, **kwargs)

    cuda: Any = torch.cuda
    for name in ("set_device", "synchronize", "empty_cache", "set_stream"):
        setattr(cuda, name, _Nothing().whatever)
    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"):
        setattr(cuda, name, lambda *args: 0)
    cuda.memory_stats = lambda *args: defaultdict(int)
    cuda.device_count = lambda: 1
    cuda.current_device = lambda: torch.device("cpu")
    cuda.Stream = cuda.Event = _Nothing
    cuda.stream = cuda.current_stream = lambda *args: _Nothing()
    cuda.get_rng_state = lambda device="cuda": torch.random.get_rng_state()
    cuda.set_rng_state = lambda state, device="cuda": torch.random.set_rng_state(state)
    cuda.manual_seed = torch.random.manual_seed
    original = dist.init_process_group

    def init_process_group(backend: Any = None, *args: Any, **kwargs: Any) -> None:
        kwargs.pop("device_id", None)
        original("gloo", *args, **kwargs)

    dist.init_process_group = init_process_group
    tracker: Any = importlib.import_module("megatron.core.tensor_parallel.random")
    tracker._set_cuda_rng_state = lambda state, *args, **kwargs: torch.random.set_rng_state(state)
    tracker._get_cuda_rng_state = lambda *args, **kwargs: torch.random.get_rng_state()
    # A C++ helper for pre-training data, which no fine-tuning reads.
    initialize: Any = importlib.import_module("megatron.bridge.training.initialize")
    initialize.compile_helpers = lambda: None
    setup: Any = importlib.import_module("megatron.bridge.training.setup")
    setup.initialize_megatron = functools.partial(setup.initialize_megatron, allow_no_cuda=True)
    OnCpu().__enter__()
