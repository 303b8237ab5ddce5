# SPDX-License-Identifier: Apache-2.0
"""Backends, gradients and registration of inr_query, and the public function."""

import inspect
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from fastds._suggestions import add_article
from fastds.ops.core import native, triton_loader
from fastds.ops.core.arguments import DTYPES, cast_for_autocast, check_dense, check_shape, check_tensor
from fastds.ops.core.backends import Backend
from fastds.ops.core.plans import finds_planned_calls_of, planned
from fastds.ops.core.registry import compute_vjp, define
from fastds.ops.core.tracing import Proxy, record_op
from fastds.ops.impl.inr_query import native_call
from fastds.ops.impl.inr_query.points import GridSpec, PointSpec, check_edge
from fastds.ops.impl.inr_query.query import Query, check
from fastds.ops.impl.inr_query.reference import inr_query as reference

__all__ = ["GridSpec", "PointSpec", "inr_query"]


def _forward(*args):
    query = Query(*args)
    return _forward_empty(*args) if query.is_empty else native_call.forward(query)


def _forward_triton(*args):
    query = Query(*args)
    return _forward_empty(*args) if query.is_empty else native_call.forward_triton(query)


def _forward_empty(*args):
    check_dense(Query._fields, args)  # no kernel follows that would report other layouts
    return _fake(*args)


def _fake(*args):
    query = Query(*args)
    shape = (query.maps.shape[0], query.queries, query.outputs)
    return query.maps.new_empty(shape, dtype=query.out_dtype)


def _native_unsupported_reason(*args):
    query = Query(*args)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (query.frac, query.cell)):
        return "only the reference computes gradients of coordinates and cells"
    return native.unsupported_reason({"cpu": "InrQueryDims", "cuda": "inr_query_features_cuda"}, query.maps)


def _triton_unsupported_reason(*args):
    query = Query(*args)
    fits = query.feature == "affine" and query.ensemble != "none" and query.mask is None
    if not fits or query.weighting != "bilinear":
        return "the fused kernel takes feature 'affine', an ensemble, bilinear weights and no mask"
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (query.frac, query.cell)):
        return "only the reference computes gradients of coordinates and cells"
    reason = triton_loader.unsupported_reason(query.maps)
    if reason is not None:
        return reason
    if query.maps.dtype == torch.float32 and not triton_loader.is_interpreting():
        return "the fused kernel takes bfloat16 and float16: float32 tiles do not fit into registers"
    widths = [w.shape[0] for w in query.weights]
    sizes = (query.ensemble, query.depth, widths, widths[-1] if widths else 0, query.heads, max(1, query.dk))
    capability = triton_loader.get_capability(query.maps.device.index) if query.maps.is_cuda else None
    return triton_loader.load_kernels("inr_query").unsupported_reason(*sizes, capability)


# ---- gradients


def _backward(grad_y, with_skip, *args):
    query = Query(*args)
    if query.is_empty:
        return [torch.zeros_like(t) for t in query.get_present_tensors(with_skip)]
    return native_call.backward(grad_y, query, with_skip)


def _backward_fake(grad_y, with_skip, *args):
    layouts = {4: torch.channels_last}  # gradients of maps and skip
    given = Query(*args).get_present_tensors(with_skip)
    return [torch.empty_like(t, memory_format=layouts.get(t.dim(), torch.contiguous_format)) for t in given]


def _backward_reference(grad_y, with_skip, *args):
    query = Query(*args)
    given = query.get_present_tensors(with_skip)

    def function(*tensors):
        return reference(*query.replace_present_tensors(tensors, with_skip))

    return compute_vjp(function, given, (grad_y,), len(given) * [True])


def _backward_unsupported_reason(grad_y, with_skip, *args):
    if native.runs_on_cuda(args[0]) and torch.are_deterministic_algorithms_enabled():
        return "it adds atomically on CUDA, and torch.use_deterministic_algorithms is on"
    return _native_unsupported_reason(*args)


def _check_backward(grad_y, with_skip, *args) -> None:
    check(*args)
    query = Query(*args)
    check_tensor("grad_y", grad_y, 3, DTYPES, query.maps.device, "maps")
    check_shape("grad_y", grad_y, (query.maps.shape[0], query.queries, query.outputs))
    if with_skip and query.skip is None:
        raise ValueError("with_skip requests the gradient of skip, but skip is None")


_FIRST_OPTION = Query._fields.index("feature")


class _InrQuery(torch.autograd.Function):
    """Autograd function with the arguments run, query and *query.get_differentiable().

    The differentiable tensors are separate arguments, because autograd tracks only tensors in the argument list.
    """

    @staticmethod
    def forward(ctx, run, query, *tensors):
        ctx.save_for_backward(*tensors, query.base, query.frac, query.cell, query.mask)
        ctx.layers, ctx.axes, ctx.options = len(query.weights), query.axes, query[_FIRST_OPTION:]
        return run(*query)

    @staticmethod
    def backward(ctx, grad_y):
        *tensors, base, frac, cell, mask = ctx.saved_tensors  # autograd checks that these have not changed
        n, with_skip = 1 + ctx.layers, ctx.needs_input_grad[-1]
        *parameters, skip = tensors[n + ctx.layers :]
        args = (
            tensors[0], tensors[1:n], tensors[n : n + ctx.layers], base, frac, ctx.axes, *parameters, cell, skip, mask,
            *ctx.options,
        )  # fmt: skip
        grads = iter(INR_QUERY_BACKWARD.call_unchecked(grad_y, with_skip, *args))
        given = [t is not None for t in tensors[:-1]] + [with_skip]
        return None, None, *(next(grads) if there else None for there in given)


class _AutogradEntry:
    """Adapter for the registry, which calls apply(run, *args)."""

    @staticmethod
    def apply(run, *args):
        query = Query(*args)
        return _InrQuery.apply(run, query, *query.get_differentiable())


_SCHEMA = (
    "Tensor maps, Tensor[] weights, Tensor[] biases, Tensor? base, Tensor? frac, int[] axes, Tensor? rho_w, "
    "Tensor? cell_w, Tensor? bias, Tensor? rho_bias, Tensor? phase, Tensor? cell, Tensor? skip, Tensor? mask, "
    "str feature, str ensemble, int heads, int dk, str act, str weighting, bool[2] wrap, ScalarType out_dtype"
)

INR_QUERY = define(
    f"inr_query({_SCHEMA}) -> Tensor",
    reference=reference,
    backends={
        "native": Backend(_forward, _native_unsupported_reason),
        # Preferred: several times faster than CUDA C++ with the library's matrix products.
        "triton": Backend(
            _forward_triton,
            _triton_unsupported_reason,
            lambda maps, *_: maps.device.type == "cuda" and maps.dtype in (torch.float16, torch.bfloat16),
        ),
    },
    fake=_fake,
    check=check,
    function=cast(Any, _AutogradEntry),
)
INR_QUERY_BACKWARD = define(
    f"inr_query_backward(Tensor grad_y, bool with_skip, {_SCHEMA}) -> Tensor[]",
    reference=_backward_reference,
    backends={"native": Backend(_backward, _backward_unsupported_reason)},
    fake=_backward_fake,
    check=_check_backward,
)


def _split_trunk(trunk) -> tuple[list, list]:
    """Return the weights and the biases of the trunk."""
    try:
        return [w for w, _ in trunk], [b for _, b in trunk]
    except (TypeError, ValueError):
        raise TypeError("trunk must be a list of pairs (weight, bias)") from None


def _cast_for_autocast(maps, trunk, *parameters):
    """Cast maps to the autocast dtype; float32 parameters stay float32."""
    weights, biases = trunk
    tensors = (maps, *weights, *biases, *parameters)
    maps, *rest = cast_for_autocast(tensors, keep_float32=range(1, len(tensors)))
    n = len(weights)
    return maps, rest[:n], rest[n : 2 * n], *rest[2 * n :]


def inr_query(
    maps: Tensor,
    where: GridSpec | PointSpec,
    trunk: Sequence[tuple[Tensor, Tensor | None]] = (),
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
    activation: str = "relu",
    edge: tuple[str, str] = ("clamp", "clamp"),
    mask: Tensor | None = None,
    compat: str | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Evaluate a field at arbitrary points from the features of the four nearest pixels and a small network, the trunk.

    The feature of corner j of a query at index coordinates u, with the offset rho_j = 2 (u - pixel_j) and the bilinear
    weight omega_j, is:
        affine:  h_j = activation(P_j + R rho_j + Lambda kappa + b)
        slope:   h_j = activation(P_j + S^y_j rho_y + S^x_j rho_x + R rho_j + Lambda kappa + b)
        fourier: h_j = [a_j cos(pi theta_j); a'_j sin(pi theta_j)],
                 theta_jn = g_j,2n rho_y + g_j,2n+1 rho_x + (Phi kappa)_n
        dot:     y_o = <activation(R rho + Lambda kappa + b), G_o> + g_o of the upper left corner
    The result with the trunk (linear layers with ReLU between them) is:
        none:       y = trunk(h of the upper left corner)
        late:       y = sum_j omega_j trunk(h_j)
        early_area: y = trunk(sum_j omega_j h_j)
        early_attn: y = trunk(sum_j alpha_jh h_jh), alpha_jh ~ omega_j exp(<q_h, K_jh> / sqrt(dk) + <u_h, rho_j>),
                    q = sum_j omega_j Q_j
    If skip is given, sum_j omega_j skip_j is added. A first layer over unfolded 3x3 neighbourhoods, as in LIIF, is
    equivalent to a 3x3 convolution, which can be computed once as part of `maps`.

    Args:
        maps: (B, M, H, W), float32, bfloat16, float16 or float64; any strides, fastest in channels_last. M is D for
            affine, 3 D for slope (P, S^y, S^x), 4N for fourier (2N amplitudes, then pairs of row and column
            frequencies) and O (D + 1) for dot (G, then g). With early_attn 2 heads dk more channels follow (keys, then
            contents).
        where: GridSpec, whose coordinates are computed from integers in the kernel, or PointSpec of batch B or 1.
        trunk: up to 8 pairs (weight (out, in), bias (out,)), dtype of maps or float32. Empty: the result is the
            ensemble.
        feature: "affine", "slope", "fourier" or "dot".
        ensemble: "none", "late", "early_area" or "early_attn".
        rho_w: (D, 2), R, columns (row, column), dtype of maps or float32, or None.
        cell_w: (D, 2), Lambda, columns (row, column), dtype of maps or float32, or None.
        bias: (D,), b, dtype of maps or float32, or None.
        heads: int, number of heads of early_attn.
        dk: int, key channels of each head of early_attn.
        rho_bias: (heads, 2), u of early_attn, dtype of maps or float32, or None.
        phase: (N, 2), Phi of fourier, dtype of maps or float32, or None.
        cell: (B, 2) or (B, Q, 2) float32 or float64, kappa = 2 n / m per axis, the size of a query in half pixels of
            the maps, or None.
        skip: (B, O, H, W) float32 or float64, field that is added by bilinear interpolation, or None.
        activation: "relu" or "none".
        edge: pair of "clamp" or "wrap" for rows and columns. On a wrapped axis rho is continuous across the seam.
        mask: (B, H, W) bool, False for invalid pixels, or None. Invalid pixels are not read, and the weights of the
            other corners are renormalized. The result of a query without a valid corner is NaN.
        compat: None, or "liif" to weight the features of the corners by areas + 1e-9, as published, instead of
            bilinearly. The skip field remains bilinear. Away from the edges of the maps, both weights agree to about
            1e-9. At u = n - 1 exactly, which occurs for odd integer factors, both corners of a clamped axis are the
            same pixel; all areas are then zero, and each of the four corners has weight 1/4, which mixes two pixels of
            the other axis. In the published code, the weights at these points vary between 1/4 and the bilinear
            weights, because the coordinates are rounded.
        out_dtype: dtype of the result. None: float32, or float64 for float64 maps.

    Returns:
        (B, Q, O), the queries of a grid row by row. In the forward pass on a CPU, no tensor of size Q x D is stored,
        and the result does not depend on how queries are grouped into calls, bit for bit.

    Raises:
        TypeError: an argument is not a Tensor or has a wrong dtype.
        ValueError: a shape, device or option is invalid.

    Gradients exist for maps, trunk, rho_w, cell_w, bias, rho_bias, phase and skip by native kernels, and for cell and
    where.frac by the reference, to any order. On a CPU results are deterministic, and the forward pass does not depend
    on the number of threads. On CUDA the backward pass adds atomically unless torch.use_deterministic_algorithms is on.
    Under autocast maps are cast to the autocast dtype; float32 parameters, coordinates and skip are not cast.

    Source: Chen, Liu and Wang 2021 (LIIF); Lee and Jin 2022 (LTE); Hu et al. 2019 (MetaSR). The factored first layer,
    the bilinear prior and the weights without areas are specific to fastds.
    """
    if type(maps) is Proxy:
        return record_op(inr_query, locals())
    if not isinstance(where, GridSpec | PointSpec):
        raise TypeError(f"where is {add_article(type(where).__name__)}, expected GridSpec or PointSpec")
    if compat not in (None, "liif"):
        raise ValueError(f"compat must be None or 'liif', got {compat!r}")
    y = _query_points(
        *_get_coordinates(where), maps, trunk, feature, ensemble, rho_w, cell_w, bias, heads, dk, rho_bias, phase, cell,
        skip, activation, edge, mask, compat, out_dtype,
    )  # fmt: skip
    if isinstance(where, PointSpec) and where.outside is not None:
        y = torch.where(where.outside[..., None], float("nan"), y)
    return y


def _get_coordinates(where: GridSpec | PointSpec) -> tuple[Tensor | None, Tensor | None, list[int]]:
    """Return base, frac and axes, see Query: a plan's key takes tensors and numbers, but no objects that hold them."""
    return (None, None, where.numbers()) if isinstance(where, GridSpec) else (where.base, where.frac, [])


@planned
def _query_points(
    base, frac, axes, maps, trunk, feature, ensemble, rho_w, cell_w, bias, heads, dk, rho_bias, phase, cell, skip,
    activation, edge, mask, compat, out_dtype,
):  # fmt: skip
    """Compute inr_query for base, frac and axes in place of `where`. The other arguments are those of inr_query."""
    maps, weights, biases, rho_w, cell_w, bias, rho_bias, phase = _cast_for_autocast(
        maps, _split_trunk(trunk), rho_w, cell_w, bias, rho_bias, phase
    )
    exact = torch.float64 if isinstance(maps, Tensor) and maps.dtype == torch.float64 else torch.float32
    wrap = [e == "wrap" for e in check_edge(edge)]
    weighting = "areas" if compat else "bilinear"
    if ensemble != "early_attn":
        heads, dk = 1, 0
    return INR_QUERY(
        *Query(
            maps, weights, biases, base, frac, axes, rho_w, cell_w, bias, rho_bias, phase, cell, skip, mask, feature,
            ensemble, heads, dk, activation, weighting, wrap, out_dtype or exact,
        )
    )  # fmt: skip


@finds_planned_calls_of(inr_query)
def _find_planned_call(*args, **kwargs):
    bound = inspect.signature(inr_query).bind(*args, **kwargs)
    bound.apply_defaults()
    given = dict(bound.arguments)
    return _query_points, (*_get_coordinates(given.pop("where")), *given.values())
