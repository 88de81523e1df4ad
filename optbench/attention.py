"""Attention without fused kernels, where they do not serve."""

from __future__ import annotations

from contextlib import AbstractContextManager

from torch.nn.attention import SDPBackend, sdpa_kernel


def unfused() -> AbstractContextManager[None]:
    """Within it `scaled_dot_product_attention` is matrix products and a softmax.

    These take a member axis, where `torch.func` calls a fused kernel once for each member, and they have a second
    derivative. For one network in training on a CPU the fused kernel is twice as fast.
    """
    context: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
    return context
