"""Products of bfloat16 on a processor that has none: in float32, of the rounded numbers, and then rounded.

    with rounded.products():
        next(run)                   # in bfloat16, at the pace of float32 instead of a fiftieth of it

That is what AMX and AVX512-BF16 compute, but for the order in which they add: two numbers of eight bits each have an
exact product in float32, and sums are kept in it. So what is painted can be measured, and how long it takes cannot.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

aten = torch.ops.aten
PRODUCTS = {aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.convolution, aten.convolution_backward}


class _Rounded(TorchDispatchMode):
    """Has torch's products of bfloat16 done in float32."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        sixteen = any(isinstance(arg, Tensor) and arg.dtype == torch.bfloat16 for arg in args)
        if not sixteen or func.overloadpacket not in PRODUCTS:
            return func(*args, **kwargs)
        out = kwargs.pop("out", None)
        made = func.overloadpacket(*tree_map_only(Tensor, Tensor.float, args), **kwargs)
        return tree_map_only(Tensor, Tensor.bfloat16, made) if out is None else out.copy_(made)


def products() -> AbstractContextManager:
    """While it lasts, torch computes this thread's products of bfloat16 in float32."""
    return _Rounded()
