"""Attention without fused kernels, for member axes and second derivatives."""

from __future__ import annotations

from contextlib import AbstractContextManager

from torch.nn.attention import SDPBackend, sdpa_kernel


def unfused() -> AbstractContextManager[None]:
    """Compute `scaled_dot_product_attention` from matrix products and a softmax within the block.

    Unlike a fused kernel, which `torch.func` calls once per member, these are batched over the member axis and have a
    second derivative. For one network in training on a CPU the fused kernel is twice as fast.
    """
    context: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
    return context
