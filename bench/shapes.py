"""The shapes of ResNet-50's parameters (He et al. 2015): 161 arrays, 25.6 million parameters."""

from __future__ import annotations


def _resnet50() -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    width = 64
    for planes, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            for n_out, n_in, k in ((planes, width, 1), (planes, planes, 3), (4 * planes, planes, 1)):
                shapes += [(n_out, n_in, k, k), (n_out,), (n_out,)]  # convolution, scale and shift of its normalization
            if block == 0:
                shapes += [(4 * planes, width, 1, 1), (4 * planes,), (4 * planes,)]
            width = 4 * planes
    return [*shapes, (1000, 2048), (1000,)]


RESNET50 = _resnet50()
