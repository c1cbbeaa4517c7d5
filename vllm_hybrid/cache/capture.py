"""How a layer's hidden states reach the cache: a hook on its QKV projection, which sees x and comes before attention.

The hook calls one custom op. The op declares the projection's output as changed, although it changes nothing in it:
attention reads that output, so no compiler may drop the op or move it behind attention, which reads the tokens of this
very step from the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from vllm.forward_context import get_forward_context, is_forward_context_available
from vllm.model_executor.layers.linear import QKVParallelLinear, UnquantizedLinearMethod
from vllm.utils.torch_utils import LayerNameType, _encode_layer_name, _resolve_layer_name, direct_register_custom_op

from vllm_hybrid.cache.kernels.view import hidden_view


@dataclass(frozen=True, slots=True)
class Projection:
    """How K and V of a layer follow from x: K's rows before V's."""

    weight: torch.Tensor
    """[2*nkv*hd, H]"""

    bias: torch.Tensor | None
    """[2*nkv*hd]"""

    @property
    def key_weight(self) -> torch.Tensor:
        return self.weight[: len(self.weight) // 2]

    @property
    def value_weight(self) -> torch.Tensor:
        return self.weight[len(self.weight) // 2 :]

    @property
    def key_bias(self) -> torch.Tensor | None:
        return None if self.bias is None else self.bias[: len(self.bias) // 2]

    @property
    def value_bias(self) -> torch.Tensor | None:
        return None if self.bias is None else self.bias[len(self.bias) // 2 :]

    def to(self, dtype: torch.dtype) -> Projection:
        """The same in another dtype."""
        return Projection(self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype))


def projection_of(qkv: QKVParallelLinear, dtype: torch.dtype) -> Projection:
    """The layer's own weights where nobody has packed them (on a GPU, unquantised); else the layer is asked for its
    product with the identity, which is exact."""
    first = qkv.num_heads * qkv.head_size
    weight = getattr(qkv, "weight", None)
    if weight is None or not weight.is_cuda or type(qkv.quant_method) is not UnquantizedLinearMethod:
        identity = torch.eye(qkv.input_size, dtype=dtype, device=next(qkv.parameters()).device)
        weight = qkv.quant_method.apply(qkv, identity, bias=None).T[first:].contiguous()
    else:
        weight = weight.detach()[first:]
    return Projection(weight, None if qkv.bias is None else qkv.bias.detach()[first:])


def capture(qkv: QKVParallelLinear, attention_name: str) -> None:
    """Write what `qkv` is given into the half blocks of the attention layer of that name, from now on."""
    name = _encode_layer_name(attention_name)

    def hook(_: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        projected = output[0] if isinstance(output, tuple) else output
        torch.ops.vllm.hybrid_hidden_write(inputs[0], projected, name)

    qkv.register_forward_hook(hook)


def hybrid_hidden_write(x: torch.Tensor, projected: torch.Tensor, layer_name: LayerNameType) -> None:
    """x [T, H] into the slots of this step that are of the half form; nothing where no batch is being served."""
    if not is_forward_context_available():
        return
    context = get_forward_context()
    name = _resolve_layer_name(layer_name)
    slots = context.slot_mapping.get(name) if isinstance(context.slot_mapping, dict) else None
    layer = context.no_compile_layers[name]
    if slots is not None and layer.kv_cache.numel():
        layer.impl.write_hidden(x, hidden_view(layer.kv_cache, x.shape[1]), slots[: x.shape[0]])


def _nothing(x: torch.Tensor, projected: torch.Tensor, layer_name: LayerNameType) -> None:
    """What the op does to shapes."""


direct_register_custom_op(
    op_name="hybrid_hidden_write", op_func=hybrid_hidden_write, mutates_args=["projected"], fake_impl=_nothing
)
