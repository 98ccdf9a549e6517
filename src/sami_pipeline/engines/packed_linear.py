"""Linear layers whose weights stand in memory as oneDNN multiplies them.

A CPU's matrix kernels want weights in blocks. torch brings a 16-bit weight into them at every call,
which for the few rows of a decoding step takes up to half of the time of the product. Here it is
done once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PackedLinear(nn.Module):
    """An ``nn.Linear`` for inference, with the same results to the last bit.

    Args:
        layer: whose bfloat16 weights, on a CPU, are taken.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features = layer.in_features
        self.out_features = layer.out_features
        self.bias = layer.bias
        # Not a buffer: what walks through a model's tensors expects strides.
        self._packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), None)

    @property
    def weight(self) -> Tensor:
        """(out, in) bfloat16, unpacked at every call: for code that reads more than the product."""
        return self._packed.to_dense()

    def forward(self, states: Tensor) -> Tensor:
        """Return ``states @ weight.T + bias``; (…, in) to (…, out)."""
        return torch.ops.mkldnn._linear_pointwise(
            states.contiguous(), self._packed, self.bias, "none", [], ""
        )


@torch.inference_mode()
def pack_linear_layers(model: nn.Module) -> int:
    """Replace a model's linear layers by packed ones, which only inference can use.

    Layers are left as they are on accelerators, in other dtypes, and where torch's packed product
    is not what it is without packing: the operators are torch's own for compiled models, and not
    documented. A weight that another module shares stays there too.

    Returns:
        how many were replaced.
    """
    chosen = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        # Not subclasses: they may do more than the product.
        if type(child) is nn.Linear
        and child.weight.device.type == "cpu"
        and child.weight.dtype == torch.bfloat16
    ]
    # A layer that has two places is packed once.
    packed: dict[nn.Linear, PackedLinear] = {}
    for parent, name, layer in chosen:
        if layer not in packed:
            if not packed and not _packs_exactly(layer):
                return 0
            packed[layer] = PackedLinear(layer)
        setattr(parent, name, packed[layer])
    return len(packed)


def _packs_exactly(layer: nn.Linear) -> bool:
    """Return whether a packed layer gives what the layer gives, to the last bit."""
    states = torch.linspace(-1, 1, 3 * layer.in_features, dtype=layer.weight.dtype).view(3, -1)
    try:
        return torch.equal(PackedLinear(layer)(states), layer(states))
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False  # a build without oneDNN, or another version's operators
