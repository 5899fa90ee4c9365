"""A convolution as one linear map at many positions."""

import torch as th
from torch import nn
from torch.nn import functional as F


def patches(layer: nn.Conv2d, images: th.Tensor, n_ones: int = 0) -> th.Tensor:
    """
    Cut images into the patches that a convolution is applied to.

    :param layer: the convolution
    :param images: shape (n, c, h, w)
    :param n_ones: number of ones to append to each patch
    :return: shape (n, T, c · kernel + n_ones) for T positions, entries in the order of the weight's
    """
    cut = _padded(layer, images)
    for dim in (0, 1):
        cut = _cut(layer, cut, dim, axis=2 + dim)
    # A view of shape (n, h', w', c, k, l): F.unfold would start a kernel for each image.
    cut = cut.permute(0, 2, 3, 1, 4, 5)
    n_positions, fan_in = cut.shape[1:3].numel(), cut.shape[3:].numel()
    if n_ones == 0:
        return cut.reshape(len(images), n_positions, fan_in)
    found = images.new_ones(len(images), n_positions, fan_in + n_ones)
    found[:, :, :fan_in].view(cut.shape).copy_(cut)
    return found


def mean_patch(layer: nn.Conv2d, images: th.Tensor) -> th.Tensor:
    """
    Return the mean of :func:`patches` over positions, without cutting them out: along one side, then the other.

    :param layer: the convolution
    :param images: shape (n, c, h, w)
    :return: shape (n, 1, c · kernel)
    """
    found = _padded(layer, images)
    for dim in (0, 1):
        found = _cut(layer, found, dim, axis=2).mean(dim=2)
    return found.flatten(1).unsqueeze(1)


def by_position(images: th.Tensor) -> th.Tensor:
    """
    Reshape a convolution's outputs, or tensors of the same shape, to the order of :func:`patches`.

    :param images: shape (…, g, h', w')
    :return: shape (…, T, g)
    """
    return images.flatten(-2).mT


def _padded(layer: nn.Conv2d, images: th.Tensor) -> th.Tensor:
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(images, layer._reversed_padding_repeated_twice, mode)


def _cut(layer: nn.Conv2d, images: th.Tensor, dim: int, axis: int) -> th.Tensor:
    """Return a view with the positions along one side in place of an axis, and the kernel's entries as the last."""
    extent = (layer.kernel_size[dim] - 1) * layer.dilation[dim] + 1
    return images.unfold(axis, extent, layer.stride[dim])[..., :: layer.dilation[dim]]


def positions_along(layer: nn.Conv2d, length: int, dim: int) -> int:
    """Return at how many positions a convolution is applied along one side of an image."""
    left, right = layer._reversed_padding_repeated_twice[2 - 2 * dim : 4 - 2 * dim]
    return (length + left + right - layer.dilation[dim] * (layer.kernel_size[dim] - 1) - 1) // layer.stride[dim] + 1


def conv_arguments(layer: nn.Conv2d) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Return stride, padding and dilation of a convolution whose padding is given as numbers, or is "valid"."""
    return layer.stride, (0, 0) if isinstance(layer.padding, str) else layer.padding, layer.dilation
