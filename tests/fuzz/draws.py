# SPDX-License-Identifier: Apache-2.0
"""Random choices for one call."""

from dataclasses import replace
from random import Random

from .cases import LAYOUTS, POOLS, Spec


class Draw:
    """The choices for one call: dtype, batch size, spatial size, and tensor contents."""

    def __init__(self, choose: Random, kind: str):
        self.choose, self.kind = choose, kind
        self.pick, self.int = choose.choice, choose.randint
        self.autocast = self.pick((None, None, None, "bfloat16", "float16"))
        self.dtype = self.pick(("float32", "float32", "bfloat16", "float16", "float64"))
        self.wide = self.pick(("float32", self.dtype)) if self.dtype != "float64" else self.dtype
        self.batch = self.pick((1, 1, 2, 3, 0 if kind == "valid" else 2))
        self.size = self.int(1, 9), self.int(1, 9)
        self.fills = self.pick((("nan",), tuple(POOLS)))
        self.grad = kind == "valid" and self.pick((True, False))

    def maybe(self, value):
        return self.pick((value, None))

    def tensor(self, *shape, dtype=None, role="image", scale=1.0, fill="normal", layout=None):
        if self.kind == "special" and fill == "normal":
            fill = self.pick((*self.fills, "normal"))
        layout = layout or self.pick(LAYOUTS)
        grad = self.grad and self.pick((True, True, False))
        return Spec(shape, dtype or self.dtype, layout, role, fill, scale, grad)

    def image(self, channels, size=None, **options):
        return self.tensor(self.batch, channels, *(size or self.size), **options)

    def parameter(self, *shape, scale=1.0, dtype=None):
        return self.tensor(*shape, dtype=dtype or self.wide, role="parameter", scale=scale)

    def filters(self, outputs, inputs, size=3):
        """Describe a weight with finite values.

        Algorithms differ in the product of an infinite weight and the zero padding.
        """
        spec = self.parameter(outputs, inputs, size, size, scale=(size * size * inputs) ** -0.5)
        return replace(spec, fill="normal")

    def slope(self):
        return self.pick((0.0, 0.1, 0.2, 1.0, 1.5))
