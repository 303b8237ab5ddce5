# SPDX-License-Identifier: Apache-2.0
"""Tests of inr_query on a GPU against the float64 reference on the CPU."""

import pytest
import torch
from gpu import checks

from fastds.ops.impl.inr_query.points import GridSpec, from_index
from tests.support.inr_cases import KINDS, exact, flat_arguments, query, random_case

SOURCE = (7, 9)
FUSED = {torch.bfloat16: 8e-2, torch.float16: 2e-2}  # tolerances
GRID = GridSpec.cells(SOURCE, (20, 31))


@pytest.fixture
def native(forced, device):
    maps, trunk, keywords = random_case("affine-none", SOURCE, dtype=torch.float32, skip=False)
    trunk = [checks.moved(pair, device) for pair in trunk]
    keywords = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in keywords.items()}
    with forced("inr_query", "native", *flat_arguments(maps.to(device), GRID, trunk, **keywords)):
        yield


def case(kind, dtype=torch.float32, device="cpu", **options):
    """Return a query as a function of its differentiable tensors, and these tensors.

    Args:
        kind: kind of query, see random_case.
        dtype: dtype of the maps.
        device: device of `cell`; a CUDA graph cannot copy it from the CPU.
        options: passed to random_case.
    """
    maps, trunk, keywords = random_case(kind, SOURCE, dtype=torch.float32, **options)
    keywords["cell"] = keywords["cell"].to(device)
    names = [k for k, v in keywords.items() if isinstance(v, torch.Tensor) and k != "cell"]
    tensors = [maps.to(dtype), *(t for pair in trunk for t in pair), *(keywords[k] for k in names)]

    def function(maps, *rest, where=GRID, op=query):
        layers = list(zip(rest[: 2 * len(trunk) : 2], rest[1 : 2 * len(trunk) : 2], strict=True))
        given = keywords | dict(zip(names, rest[2 * len(trunk) :], strict=True))
        given["cell"] = given["cell"].to(maps.device, rest[0].dtype if rest else maps.dtype)
        return op(maps, where, layers, **given)

    return function, tensors


def of_reference(function, tensors, **options):
    return checks.value_and_gradients(lambda *t: function(*t, op=exact, **options), [t.double() for t in tensors])


@pytest.mark.sanitize
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_reference(kind, native, device):
    function, tensors = case(kind)
    ours = checks.value_and_gradients(function, checks.moved(tensors, device))
    checks.close(ours, of_reference(function, tensors), 5e-5)


@pytest.mark.parametrize("kind", ["affine-early_attn", "fourier-late"])
def test_bfloat16_and_points(kind, native, device):
    function, tensors = case(kind, torch.bfloat16)
    at = 6 * torch.rand(2, 57, 2, dtype=torch.float64)
    ours = checks.value_and_gradients(
        lambda *t: function(*t, where=from_index(at.to(device), SOURCE)), checks.moved(tensors, device)
    )
    expected = of_reference(function, tensors, where=from_index(at, SOURCE, dtype=torch.float64))
    checks.close(ours, expected, 8e-2)


def test_streams_graphs_compile_and_layouts(native, device):
    function, tensors = case("affine-early_attn", device=device)
    tensors = checks.moved(tensors, device)
    checks.check_stream(function, tensors)
    checks.check_graph(function, tensors)
    checks.check_compile(function, tensors, 1e-3)
    checks.check_misaligned(function, tensors)
    checks.check_other_device(function, tensors)


def fused_case(ensemble, width, dtype, hidden, bare):
    """Return maps, trunk and options of a query that the fused Triton kernel supports."""
    heads, dk = (4, 16) if ensemble == "early_attn" else (1, 0)
    maps = torch.randn(2, width + 2 * heads * dk, *SOURCE).to(dtype).contiguous(memory_format=torch.channels_last)
    trunk = [(torch.randn(n, width) / width**0.5, torch.randn(n)) for n in [width] * hidden + [3]]
    options = {"rho_w": torch.randn(width, 2), "cell_w": torch.randn(width, 2), "cell": torch.rand(2, 2)}
    if not bare:
        options |= {"bias": torch.randn(width), "skip": torch.randn(2, 3, *SOURCE)}
        options |= {"rho_bias": torch.randn(heads, 2)} if heads > 1 else {}
    return maps, trunk, options | {"ensemble": ensemble, "heads": heads, "dk": dk}


def cast(maps, trunk, options, device, dtype=None):
    """Move a query to a device; with dtype None, tensors keep their dtypes."""
    trunk = [checks.moved(pair, device, dtype) for pair in trunk]
    options = {k: v.to(device, dtype or v.dtype) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    return maps.to(device, dtype or maps.dtype), trunk, options


@pytest.mark.parametrize("dtype", checks.dtypes(FUSED))
@pytest.mark.parametrize("bare", [False, True], ids=["all", "bare"])
@pytest.mark.parametrize("ensemble, width", [("early_attn", 128), ("early_attn", 64), ("early_area", 64),
                                             ("late", 256), ("late", 128), ("late", 64)])  # fmt: skip
def test_fused_kernel(ensemble, width, bare, dtype, device, forced):
    for hidden in (1, 2, 3):
        case = fused_case(ensemble, width, dtype, hidden, bare)
        maps, trunk, options = cast(*case, "cpu", torch.float64)
        expected = exact(maps, GRID, trunk, **options)
        maps, trunk, options = cast(*case, device)
        with forced("inr_query", "triton", *flat_arguments(maps, GRID, trunk, **options)), torch.no_grad():
            checks.close([query(maps, GRID, trunk, **options)], [expected], FUSED[dtype])


@pytest.mark.filterwarnings("ignore:fastds.inr_query_backward runs on its slow PyTorch reference")
def test_deterministic_algorithms_use_the_reference_for_gradients(device):
    function, tensors = case("affine-early_area")
    checks.check_deterministic(function, checks.moved(tensors, device))
