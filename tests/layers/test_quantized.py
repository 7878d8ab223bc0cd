"""A linear is packed in its own dtype."""

from __future__ import annotations

import pytest
import torch

from paceline.core.errors import ConfigError
from paceline.kernels.native.packing import unpack
from paceline.layers.linear import Linear
from paceline.layers.quantized import FLOAT_KINDS, pack_linear


@pytest.mark.parametrize(("dtype", "kind"), FLOAT_KINDS.items())
def test_a_linear_is_packed_in_its_own_dtype(dtype, kind):
    generator = torch.Generator().manual_seed(0)
    weight, bias = (torch.randn(shape, generator=generator).to(dtype) for shape in ((33, 50), (33,)))
    packed = pack_linear(Linear.from_parts([weight], [bias]))
    assert packed.kind == kind
    assert torch.equal(unpack(packed), weight.float())
    assert packed.bias is not None
    assert torch.equal(packed.bias[:33], bias.float())


def test_float64_is_refused():
    with pytest.raises(ConfigError, match="float64"):
        pack_linear(Linear.from_parts([torch.zeros(3, 4, dtype=torch.float64)]))
