# SPDX-License-Identifier: Apache-2.0
"""Local-ensemble implicit query: implementations, gradients, registration and the public function."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastds._suggestions import add_article
from fastds.ops.core import native, triton_loader
from fastds.ops.core.arguments import DTYPES, autocast, check_dense, check_shape, check_tensor
from fastds.ops.core.backends import Backend
from fastds.ops.core.registry import define, vector_jacobian
from fastds.ops.core.tracing import Proxy, record
from fastds.ops.impl.inr_query import native_call
from fastds.ops.impl.inr_query.points import GridSpec, PointSpec, checked_edge
from fastds.ops.impl.inr_query.query import Query, check
from fastds.ops.impl.inr_query.reference import inr_query as reference

__all__ = ["GridSpec", "PointSpec", "inr_query"]


def _forward(*args):
    query = Query(*args)
    return _no_points(*args) if query.empty else native_call.forward(query)


def _forward_triton(*args):
    query = Query(*args)
    return _no_points(*args) if query.empty else native_call.forward_triton(query)


def _no_points(*args):
    check_dense(Query._fields, args)  # no kernel comes that would refuse them
    return _fake(*args)


def _fake(*args):
    query = Query(*args)
    shape = (query.maps.shape[0], query.queries, query.outputs)
    return query.maps.new_empty(shape, dtype=query.out_dtype)


def _refusal(*args):
    query = Query(*args)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (query.frac, query.cell)):
        return "gradients of coordinates and cells come from the reference"
    return native.refusal({"cpu": "InrQueryCall", "cuda": "inr_query_features_cuda"}, query.maps)


def _triton_refusal(*args):
    query = Query(*args)
    fits = query.feature == "affine" and query.ensemble != "none" and query.mask is None
    if not fits or query.weighting != "bilinear":
        return "the fused kernel takes feature 'affine', an ensemble, bilinear weights and no mask"
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (query.frac, query.cell)):
        return "gradients of coordinates and cells come from the reference"
    reason = triton_loader.refusal(query.maps)
    if reason is not None:
        return reason
    if query.maps.dtype == torch.float32 and not triton_loader.interpreting():
        return "the fused kernel takes bfloat16 and float16: float32 does not fit into registers"
    widths = [w.shape[0] for w in query.weights]
    sizes = (query.ensemble, query.depth, widths, widths[-1] if widths else 0, query.heads, max(1, query.dk))
    capability = triton_loader.capability(query.maps.device.index) if query.maps.is_cuda else None
    return triton_loader.kernels("inr_query").refusal(*sizes, capability)


# ---- gradients


def _backward(grad_y, with_skip, *args):
    query = Query(*args)
    if query.empty:
        return [torch.zeros_like(t) for t in query.given(with_skip)]
    return native_call.backward(grad_y, query, with_skip)


def _backward_fake(grad_y, with_skip, *args):
    layouts = {4: torch.channels_last}  # of maps, whatever theirs
    given = Query(*args).given(with_skip)
    return [torch.empty_like(t, memory_format=layouts.get(t.dim(), torch.contiguous_format)) for t in given]


def _backward_reference(grad_y, with_skip, *args):
    query = Query(*args)
    given = query.given(with_skip)

    def function(*tensors):
        return reference(*query.with_given(tensors, with_skip))

    return vector_jacobian(function, given, (grad_y,), len(given) * [True])


def _backward_refusal(grad_y, with_skip, *args):
    if native.runs_on_cuda(args[0]) and torch.are_deterministic_algorithms_enabled():
        return "its additions on CUDA come in any order, and deterministic algorithms are wanted"
    return _refusal(*args)


def _check_backward(grad_y, with_skip, *args) -> None:
    check(*args)
    query = Query(*args)
    check_tensor("grad_y", grad_y, 3, DTYPES, query.maps.device, "maps")
    check_shape("grad_y", grad_y, (query.maps.shape[0], query.queries, query.outputs))
    if with_skip and query.skip is None:
        raise ValueError("with_skip asks for the gradient of skip, but skip is None")


class _InrQuery(torch.autograd.Function):
    """apply(run, query, *query.differentiable()): autograd follows tensors in the argument list only."""

    @staticmethod
    def forward(ctx, run, query, *tensors):
        unfollowed = {name: getattr(query, name) for name in ("base", "frac", "cell", "mask")}
        ctx.save_for_backward(*tensors, *unfollowed.values())
        nothing = query.with_tensors([None] * len(tensors))
        ctx.query = nothing._replace(**dict.fromkeys(unfollowed))  # tensors kept here would escape autograd's watch
        return run(*query)

    @staticmethod
    def backward(ctx, grad_y):
        *tensors, base, frac, cell, mask = ctx.saved_tensors
        query = ctx.query.with_tensors(tensors)._replace(base=base, frac=frac, cell=cell, mask=mask)
        with_skip = ctx.needs_input_grad[-1]
        grads = iter(INR_QUERY_BACKWARD.trusted(grad_y, with_skip, *query))
        given = [t is not None for t in tensors[:-1]] + [with_skip]
        return None, None, *(next(grads) if there else None for there in given)


class _Entry:
    """What the registry calls when a gradient is wanted."""

    @staticmethod
    def apply(run, *args):
        query = Query(*args)
        return _InrQuery.apply(run, query, *query.differentiable())


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
        # On an H200 a fifth of the time of CUDA C++ and the library's products.
        "triton": Backend(
            _forward_triton,
            _triton_refusal,
            lambda maps, *_: maps.device.type == "cuda" and maps.dtype in (torch.float16, torch.bfloat16),
        ),
    },
    fake=_fake,
    check=check,
    function=_Entry,
)
INR_QUERY_BACKWARD = define(
    f"inr_query_backward(Tensor grad_y, bool with_skip, {_SCHEMA}) -> Tensor[]",
    reference=_backward_reference,
    backends={"native": Backend(_backward, _backward_refusal)},
    fake=_backward_fake,
    check=_check_backward,
)


def _trunk(trunk) -> tuple[list, list]:
    """Weights and biases."""
    try:
        return [w for w, _ in trunk], [b for _, b in trunk]
    except (TypeError, ValueError):
        raise TypeError("trunk must be a list of pairs (weight, bias)") from None


def _autocast(maps, trunk, *parameters):
    """Maps take the autocast dtype; parameters in float32 stay so."""
    weights, biases = trunk
    tensors = (maps, *weights, *biases, *parameters)
    maps, *rest = autocast(tensors, either=range(1, len(tensors)))
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
    act: str = "relu",
    edge: tuple[str, str] = ("clamp", "clamp"),
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
        compat: "liif" weighs the features of the corners by areas + 1e-9 as published instead of bilinearly; skip stays
            bilinear. Inside a field the weights are the bilinear ones to 1e-9. At u = n - 1 exactly, which odd whole
            factors hit, a clamped axis has both corners on one pixel: no area is left, and all four corners count a
            quarter, which mixes two pixels of the other axis. Published code has any weights there between these and
            the bilinear ones, as its coordinates are rounded.
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
    if type(maps) is Proxy:
        return record(inr_query, locals())
    if not isinstance(where, GridSpec | PointSpec):
        raise TypeError(f"where is {add_article(type(where).__name__)}, expected GridSpec or PointSpec")
    if compat not in (None, "liif"):
        raise ValueError(f"compat must be None or 'liif', got {compat!r}")
    maps, weights, biases, rho_w, cell_w, bias, rho_bias, phase = _autocast(
        maps, _trunk(trunk), rho_w, cell_w, bias, rho_bias, phase
    )
    exact = torch.float64 if isinstance(maps, Tensor) and maps.dtype == torch.float64 else torch.float32
    grid = isinstance(where, GridSpec)
    base, frac, axes = (None, None, where.numbers()) if grid else (where.base, where.frac, [])
    wrap = [e == "wrap" for e in checked_edge(edge)]
    weighting = "areas" if compat else "bilinear"
    if ensemble != "early_attn":
        heads, dk = 1, 0
    y = INR_QUERY(
        *Query(
            maps, weights, biases, base, frac, axes, rho_w, cell_w, bias, rho_bias, phase, cell, skip, mask, feature,
            ensemble, heads, dk, act, weighting, wrap, out_dtype or exact,
        )
    )  # fmt: skip
    if not grid and where.outside is not None:
        y = torch.where(where.outside[..., None], float("nan"), y)
    return y
