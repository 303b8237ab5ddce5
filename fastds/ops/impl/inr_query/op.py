# SPDX-License-Identifier: Apache-2.0
"""Local-ensemble implicit query: validation, registration and the public function; native calls in _inr_native."""

import functools

import torch
from torch import Tensor

from fastds.ops.core import native as _native
from fastds.ops.core import triton_loader as _triton
from fastds.ops.core.autocast import autocast_dtype
from fastds.ops.core.checks import check_tensor
from fastds.ops.core.registry import Backend, call, define, reference_gradients, without_gradients
from fastds.ops.impl.inr_query import native_call as _inr_native
from fastds.ops.impl.inr_query.points import GridSpec, PointSpec, checked_edge
from fastds.ops.impl.inr_query.reference import ACTIVATIONS, AFFINE, ENSEMBLES, FEATURES, WEIGHTS, channels
from fastds.ops.impl.inr_query.reference import inr_query as reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
MOST_LAYERS = 8
MOST_HEADS = 64
_check_tensor = functools.partial(check_tensor, main="maps")


def _check_choice(name, value, allowed) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def _check_shape(name, tensor, expected) -> None:
    if tuple(tensor.shape) != tuple(expected):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(expected)}")


def sizes(maps, weights, biases, axes, base, rho_w, feature, ensemble, heads, dk) -> tuple[int, int, int]:
    """(Q, D, O) of arguments that check() accepted."""
    queries = axes[0] * axes[4] if axes else base.shape[1]
    if feature == "dot":
        depth = rho_w.shape[0]
        return queries, depth, maps.shape[1] // (depth + 1)
    depth = channels(feature, ensemble, maps.shape[1], heads, dk)[0]
    return queries, depth, weights[-1].shape[0] if weights else depth


def check(
    maps, weights, biases, base, frac, axes, rho_w, cell_w, bias, rho_bias, phase, cell, skip, mask, feature, ensemble,
    heads, dk, act, weighting, wrap, out_dtype,
) -> tuple[int, int, int]:  # fmt: skip
    """Refuses what the op cannot take; returns (Q, D, O)."""
    _check_tensor("maps", maps, (4,), DTYPES, None)
    batch, total, height, width = maps.shape
    if min(total, height, width) < 1:
        raise ValueError(f"maps has shape {tuple(maps.shape)}, expected at least one channel, row and column")
    _check_choice("feature", feature, FEATURES)
    _check_choice("ensemble", ensemble, ENSEMBLES)
    _check_choice("act", act, ACTIVATIONS)
    _check_choice("compat", weighting, WEIGHTS)
    _check_combination(maps, weights, rho_w, bias, phase, feature, ensemble, heads, dk)
    queries, depth, outputs = sizes(maps, weights, biases, axes, base, rho_w, feature, ensemble, heads, dk)
    exact = (torch.float64,) if maps.dtype == torch.float64 else (torch.float32, maps.dtype)
    _check_parameters(maps, depth, exact, rho_w, cell_w, bias, rho_bias, phase, heads, feature, ensemble)
    _check_trunk(weights, biases, depth, exact, maps.device)
    if not axes:
        _check_points(base, frac, batch, maps.device)
    if (cell_w is not None or phase is not None) and cell is None:
        raise ValueError("cell is None, but cell_w or phase needs it")
    if cell is not None:
        _check_tensor("cell", cell, (2, 3), (torch.float32, torch.float64), maps.device)
        _check_shape("cell", cell, (batch, 2) if cell.dim() == 2 else (batch, queries, 2))
    if skip is not None:
        _check_tensor("skip", skip, (4,), (torch.float32, torch.float64), maps.device)
        _check_shape("skip", skip, (batch, outputs, height, width))
    if mask is not None:
        _check_tensor("mask", mask, (3,), (torch.bool,), maps.device)
        _check_shape("mask", mask, (batch, height, width))
    if out_dtype not in DTYPES:
        raise ValueError(f"out_dtype must be one of {', '.join(map(str, DTYPES))}, got {out_dtype}")
    return queries, depth, outputs


def _check_combination(maps, weights, rho_w, bias, phase, feature, ensemble, heads, dk) -> None:
    total = maps.shape[1]
    if feature == "dot":
        if ensemble != "none" or weights:
            raise ValueError("feature 'dot' takes ensemble 'none' and an empty trunk")
        if rho_w is None or total % (rho_w.shape[0] + 1):
            raise ValueError(
                f"feature 'dot' needs rho_w of shape (D, 2) with D + 1 a divisor of maps' {total} channels"
            )
    if ensemble == "early_attn":
        if feature not in AFFINE:
            raise ValueError(f"ensemble 'early_attn' takes feature {' or '.join(map(repr, AFFINE))}, got {feature!r}")
        if not (isinstance(heads, int) and 1 <= heads <= MOST_HEADS and isinstance(dk, int) and dk >= 1):
            raise ValueError(f"early_attn needs heads in 1..{MOST_HEADS} and dk >= 1, got {heads!r} and {dk!r}")
        depth = channels(feature, ensemble, total, heads, dk)[0]
        if depth < 1 or depth % heads:
            raise ValueError(
                f"maps has {total} channels, expected D (slope: 3 D) + 2 heads dk with D a multiple of {heads} heads"
            )
    if feature == "slope" and channels(feature, ensemble, total, heads, dk)[1] % 3:
        raise ValueError(f"maps has {total} channels, expected 3 D for feature 'slope', and keys and contents behind")
    if feature == "fourier" and total % 4:
        raise ValueError(f"maps has {total} channels, expected 4 N for feature 'fourier'")
    if feature != "fourier" and phase is not None:
        raise ValueError("phase belongs to feature 'fourier'")
    if feature == "fourier" and (rho_w is not None or bias is not None):
        raise ValueError("rho_w, cell_w and bias belong to the features 'affine', 'slope' and 'dot', not to 'fourier'")


def _check_parameters(maps, depth, exact, rho_w, cell_w, bias, rho_bias, phase, heads, feature, ensemble) -> None:
    shapes = {
        "rho_w": (rho_w, (depth, 2)),
        "cell_w": (cell_w, (depth, 2)),
        "bias": (bias, (depth,)),
        "rho_bias": (rho_bias, (heads, 2)),
        "phase": (phase, (depth // 2, 2)),
    }
    for name, (tensor, shape) in shapes.items():
        if tensor is not None:
            _check_tensor(name, tensor, (len(shape),), exact, maps.device)
            _check_shape(name, tensor, shape)
    if rho_bias is not None and ensemble != "early_attn":
        raise ValueError("rho_bias belongs to ensemble 'early_attn'")


def _check_trunk(weights, biases, depth, exact, device) -> None:
    if len(weights) != len(biases) or len(weights) > MOST_LAYERS:
        raise ValueError(
            f"trunk has {len(weights)} weights and {len(biases)} biases, expected up to {MOST_LAYERS} pairs"
        )
    for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
        _check_tensor(f"trunk[{i}] weight", w, (2,), exact, device)
        _check_tensor(f"trunk[{i}] bias", b, (1,), exact, device)
        _check_shape(f"trunk[{i}] weight", w, (w.shape[0], depth))
        _check_shape(f"trunk[{i}] bias", b, (w.shape[0],))
        depth = w.shape[0]


def _check_points(base, frac, batch, device) -> None:
    _check_tensor("where.base", base, (3,), (torch.int32,), device)
    _check_tensor("where.frac", frac, (3,), (torch.float32, torch.float64), device)
    if base.shape[0] not in (1, batch) or base.shape[2] != 2 or frac.shape != base.shape:
        raise ValueError(f"where has shape {tuple(base.shape)}, expected ({batch} or 1, Q, 2)")


# ---- implementations


def _forward(*args):
    queries, depth, outputs = check(*args)
    if args[0].shape[0] * queries == 0:
        return _fake(*args)
    return _inr_native.forward(args, queries, depth, outputs)


def _fake(*args):
    queries, _, outputs = check(*args)
    return args[0].new_empty((args[0].shape[0], queries, outputs), dtype=args[-1])


def _forward_triton(*args):
    queries, depth, outputs = check(*args)
    if args[0].shape[0] * queries == 0:
        return _fake(*args)
    return _inr_native.forward_triton(args, queries, depth, outputs)


# Gradients in this order: maps, trunk weights, trunk biases, rho_w, cell_w, bias, rho_bias, phase, skip.
_TENSORS = (0, 6, 7, 8, 9, 10, 12)  # positions of the single tensors among the arguments


def _given(args, with_skip) -> list[Tensor]:
    """The arguments that get a gradient: maps, weights, biases, rho_w, ..., those that are None left out."""
    single = [args[i] for i in (_TENSORS if with_skip else _TENSORS[:-1])]
    return [single[0], *args[1], *args[2], *(t for t in single[1:] if t is not None)]


def _backward(grad_y, with_skip, *args):
    queries, depth, outputs = check(*args)
    if args[0].shape[0] * queries == 0:
        return [torch.zeros_like(t) for t in _given(args, with_skip)]
    return _inr_native.backward(grad_y, args, queries, depth, outputs, with_skip)


def _backward_fake(grad_y, with_skip, *args):
    check(*args)
    return [torch.empty_like(t) for t in _given(args, with_skip)]


def _backward_reference(grad_y, with_skip, *args):
    count = len(args[1])
    single = _TENSORS[1:] if with_skip else _TENSORS[1:-1]

    def function(*given):
        given = iter(given)
        new = list(args)
        new[0] = next(given)
        new[1], new[2] = ([next(given) for _ in range(count)] for _ in range(2))
        for i in single:
            new[i] = next(given) if args[i] is not None else None
        return reference(*new)

    # Views: a tensor given for two arguments gets the gradient of each apart.
    return reference_gradients(function, [t.view_as(t) for t in _given(args, with_skip)], grad_y)


def _refusal(*args):
    frac, cell = args[4], args[11]
    if any(t is not None and t.requires_grad for t in (frac, cell)) and torch.is_grad_enabled():
        return "gradients of coordinates and cells come from the reference"
    return _native.refusal({"cpu": "InrQueryCall", "cuda": "inr_query_features_cuda"}, args[0])


def _backward_refusal(grad_y, with_skip, *args):
    if _native.runs_on_cuda(args[0]) and torch.are_deterministic_algorithms_enabled():
        return "its additions on CUDA come in any order, and deterministic algorithms are wanted"
    return _refusal(*args)


def _triton_refusal(*args):
    maps, weights, frac, cell, mask, feature, ensemble = (args[i] for i in (0, 1, 4, 11, 13, 14, 15))
    if feature != "affine" or not ensemble.startswith("early") or mask is not None or args[19] != "bilinear":
        return "the fused kernel takes feature 'affine', early ensembles, bilinear weights and no mask"
    if any(t is not None and t.requires_grad for t in (frac, cell)) and torch.is_grad_enabled():
        return "gradients of coordinates and cells come from the reference"
    reason = _triton.refusal(maps)
    if reason is not None:
        return reason
    depth = channels(feature, ensemble, maps.shape[1], args[16], args[17])[0]
    widths = [w.shape[0] for w in weights]
    return _triton.kernels("inr_query").refusal(depth, widths, widths[-1] if widths else 0, args[16], max(1, args[17]))


class _InrQuery(torch.autograd.Function):
    """apply(options, *tensors): autograd follows tensors in the argument list only, not inside lists."""

    @staticmethod
    def forward(ctx, count, rest, *tensors):
        args = _assemble(count, rest, tensors)
        ctx.save_for_backward(*tensors, *(args[i] for i in (3, 4, 11, 13)))
        ctx.count, ctx.rest = count, [None if isinstance(r, Tensor) else r for r in rest]
        return without_gradients(INR_QUERY, *args)

    @staticmethod
    def backward(ctx, grad_y):
        saved = ctx.saved_tensors
        tensors, (base, frac, cell, mask) = saved[:-4], saved[-4:]
        rest = list(ctx.rest)
        rest[0], rest[1], rest[3], rest[4] = base, frac, cell, mask
        args, with_skip = _assemble(ctx.count, rest, tensors), ctx.needs_input_grad[-1]
        grads = iter(call(INR_QUERY_BACKWARD, grad_y, with_skip, *args))
        given = [t is not None for t in tensors[:-1]] + [with_skip]
        return None, None, *(next(grads) if there else None for there in given)


def _split(args):
    """(number of layers, the arguments without gradient, the tensors with one in the order of _given)."""
    rest = [args[3], args[4], args[5], args[11], args[13], *args[14:]]
    return len(args[1]), rest, [args[0], *args[1], *args[2], *(args[i] for i in _TENSORS[1:])]


def _assemble(count, rest, tensors):
    base, frac, axes, cell, mask, *options = rest
    maps, weights, biases = tensors[0], list(tensors[1 : 1 + count]), list(tensors[1 + count : 1 + 2 * count])
    rho_w, cell_w, bias, rho_bias, phase, skip = tensors[1 + 2 * count :]
    return (maps, weights, biases, base, frac, axes, rho_w, cell_w, bias, rho_bias, phase, cell, skip, mask, *options)


class _Entry:
    """What the registry calls when a gradient is wanted."""

    @staticmethod
    def apply(*args):
        count, rest, tensors = _split(args)
        return _InrQuery.apply(count, rest, *tensors)


_SCHEMA = (
    "Tensor maps, Tensor[] weights, Tensor[] biases, Tensor? base, Tensor? frac, int[] axes, Tensor? rho_w, "
    "Tensor? cell_w, Tensor? bias, Tensor? rho_bias, Tensor? phase, Tensor? cell, Tensor? skip, Tensor? mask, "
    "str feature, str ensemble, int heads, int dk, str act, str weighting, bool[2] wrap, ScalarType out_dtype"
)

INR_QUERY = define(
    f"inr_query({_SCHEMA}) -> Tensor",
    reference=reference,
    backends={
        "native": Backend(_forward, _refusal),
        # Chosen from the arithmetic of the specification; no GPU has measured it yet.
        "triton": Backend(
            _forward_triton,
            _triton_refusal,
            lambda maps, *_: maps.device.type == "cuda" and maps.dtype in (torch.float16, torch.bfloat16),
        ),
    },
    fake=_fake,
    function=_Entry,
)
INR_QUERY_BACKWARD = define(
    f"inr_query_backward(Tensor grad_y, bool with_skip, {_SCHEMA}) -> Tensor[]",
    reference=_backward_reference,
    backends={"native": Backend(_backward, _backward_refusal)},
    fake=_backward_fake,
)


def inr_query(
    maps: Tensor,
    where: GridSpec | PointSpec,
    trunk=(),
    *,
    feature: str = "affine",
    ensemble: str = "early_attn",
    rho_w: Tensor | None = None,
    cell_w: Tensor | None = None,
    bias: Tensor | None = None,
    heads: int = 1,
    dk: int = 0,
    rho_bias: Tensor | None = None,
    phase: Tensor | None = None,
    cell: Tensor | None = None,
    skip: Tensor | None = None,
    act: str = "relu",
    edge=("clamp", "clamp"),
    mask: Tensor | None = None,
    compat: str | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """A field at any points, from feature maps: features of the four nearest pixels, their ensemble, a small network.

    Per query at index coordinates u with corners j, offsets rho_j = 2 (u - pixel_j), bilinear weights omega_j:
        affine:  h_j = act(P_j + R rho_j + Lambda kappa + b)
        slope:   h_j = act(P_j + S^y_j rho_y + S^x_j rho_x + R rho_j + Lambda kappa + b)
        fourier: h_j = [a_j cos(pi theta_j); a'_j sin(pi theta_j)],
                 theta_jn = g_j,2n rho_y + g_j,2n+1 rho_x + (Phi kappa)_n
        dot:     y_o = <act(R rho + Lambda kappa + b), G_o> + g_o of the upper left corner
    and with the trunk (linear layers, ReLU between them):
        none:       y = trunk(h of the upper left corner)
        late:       y = sum_j omega_j trunk(h_j)
        early_area: y = trunk(sum_j omega_j h_j)
        early_attn: y = trunk(sum_j alpha_jh h_jh), alpha_jh ~ omega_j exp(<q_h, K_jh> / sqrt(dk) + <u_h, rho_j>),
                    q = sum_j omega_j Q_j
    plus sum_j omega_j skip_j. A first layer over unfolded 3x3 neighbourhoods is a 3x3 convolution, made once for maps.

    Args:
        maps: (B, M, H, W), float32, bfloat16, float16 or float64; any strides, fastest in channels_last. M: affine D,
            slope 3 D (P, S^y, S^x), early_attn D + 2 heads dk (then keys, then contents), fourier 4N (2N amplitudes,
            then row-column frequency pairs), dot O (D + 1) (G, then g).
        where: GridSpec (coordinates made from integers in the kernel) or PointSpec, batch B or 1.
        trunk: up to 8 pairs (weight (out, in), bias (out,)), dtype of maps or float32; empty: the ensemble itself.
        feature, ensemble, act ("relu" or "none"): as above.
        rho_w, cell_w: (D, 2), R and Lambda, columns (row, column), or None. bias: (D,), b, or None. Dtype of maps or
            float32.
        heads, dk, rho_bias: of early_attn; rho_bias (heads, 2), u, or None.
        phase: (N, 2), Phi, or None.
        cell: (B, 2) or (B, Q, 2) float32, kappa = 2 n / m per axis, the size of a query in half pixels of the maps.
        skip: (B, O, H, W) float32 field added by bilinear interpolation, always in float32, or None.
        edge: per axis "clamp" or "wrap" (rows, columns); on a wrapped axis rho keeps counting across the seam.
        mask: (B, H, W) bool, False = invalid: never read, weights renormalised, NaN where no corner is valid.
        compat: "liif" weighs the corners by areas + 1e-9 as published instead of bilinearly.
        out_dtype: float32 (None; float64 for float64 maps) or another.

    Returns:
        (B, Q, O), queries of a grid row by row. Nothing of size Q x D is stored on a CPU, and the result does not
        depend on how queries are grouped into calls, bit for bit.

    Gradients: maps, trunk, rho_w, cell_w, bias, rho_bias, phase, skip by the native kernel, cell and where.frac by the
    reference; to any order. Deterministic on a CPU, forward also independent of the number of threads; on CUDA the
    backward adds atomically unless torch.use_deterministic_algorithms is on. Under autocast maps take its dtype;
    coordinates, skip and parameters stay.

    Raises:
        TypeError: a dtype that is not allowed.
        ValueError: a shape, device or option that does not fit.

    Source: Chen, Liu and Wang 2021 (LIIF); Lee and Jin 2022 (LTE); Hu et al. 2019 (MetaSR); the factored first layer,
    the bilinear prior and the weights without areas are ours.
    """
    if not isinstance(where, GridSpec | PointSpec):
        raise TypeError(f"where is a {type(where).__name__}, expected GridSpec or PointSpec")
    if compat not in (None, "liif"):
        raise ValueError(f"compat must be None or 'liif', got {compat!r}")
    dtype = autocast_dtype(maps)
    if dtype is not None and isinstance(maps, Tensor) and maps.dtype != torch.float64:
        maps = maps.to(dtype)
    exact = torch.float64 if isinstance(maps, Tensor) and maps.dtype == torch.float64 else torch.float32
    grid = isinstance(where, GridSpec)
    base, frac, axes = (None, None, where.numbers()) if grid else (where.base, where.frac, [])
    try:
        weights, biases = [w for w, _ in trunk], [b for _, b in trunk]
    except (TypeError, ValueError):
        raise TypeError("trunk must be a list of pairs (weight, bias)") from None
    wrap = [e == "wrap" for e in checked_edge(edge)]
    weighting = "areas" if compat else "bilinear"
    if ensemble != "early_attn":
        heads, dk = 1, 0
    args = (maps, weights, biases, base, frac, axes, rho_w, cell_w, bias, rho_bias, phase, cell, skip, mask, feature)
    args = (*args, ensemble, heads, dk, act, weighting, wrap, out_dtype or exact)
    check(*args)
    y = call(INR_QUERY, *args)
    if not grid and where.outside is not None:
        y = torch.where(where.outside[..., None], float("nan"), y)
    return y
