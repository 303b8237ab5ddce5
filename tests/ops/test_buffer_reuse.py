# SPDX-License-Identifier: Apache-2.0
"""Tests that a forecast reuses buffers without overwriting tensors that the caller still holds."""

import pytest
import torch

from fastds.models.db_rnn import DBRNN, MSRNN
from fastds.models.db_rnn.activation_checkpointing import max_pool_2x2
from fastds.ops.core import buffer_pool as _reuse

pytestmark = pytest.mark.usefixtures("native")
SHAPE = (2, 3, 4, 5)


@pytest.fixture(autouse=True)
def small_maps_too(monkeypatch):
    monkeypatch.setattr(_reuse, "MIN_POOLED_BYTES", 1)


@pytest.fixture
def like():
    return torch.rand(SHAPE)


def test_pool_reuses_freed_buffers(like):
    with torch.no_grad(), _reuse.reuse_memory():
        first = _reuse.allocate_map(SHAPE, torch.float32, like)
        address = first.data_ptr()
        assert first.shape == SHAPE and first.is_contiguous(memory_format=torch.channels_last)
        other = _reuse.allocate_map((2, 3, 4, 6), torch.float32, like)
        part = first[:, 1:]
        del first
        assert _reuse.allocate_map(SHAPE, torch.float32, like).data_ptr() != address, "a view still holds it"
        del part
        map_of_block = _reuse.allocate_map(SHAPE, torch.float32, like).fill_(3)
        addresses = {map_of_block.data_ptr(), _reuse.allocate_map((2, 3, 5, 4), torch.float32, like).data_ptr()}
        assert address in addresses and other.data_ptr() not in addresses
    map_of_block.add_(1)
    assert (map_of_block == 4).all(), "a map outlives the block"


def test_pool_ignores_small_buffers(like, monkeypatch):
    with torch.no_grad(), _reuse.reuse_memory():
        monkeypatch.setattr(_reuse, "MIN_POOLED_BYTES", like.nbytes + 1)
        assert _reuse.make_out_argument(SHAPE, like) == {} and _reuse.make_out_argument((*SHAPE[:3], 6), like) != {}


def test_pool_accounts_for_bfloat16(like):
    with torch.no_grad(), _reuse.reuse_memory():
        x = _reuse.allocate_map(SHAPE, torch.bfloat16, like)
        assert x.dtype == torch.bfloat16 and x.untyped_storage().nbytes() == 2 * x.numel()


def test_pool_is_disabled_while_recording_gradients(like):
    with _reuse.reuse_memory(), torch.no_grad():
        assert _reuse.make_out_argument(SHAPE, like) == {}
    with torch.no_grad():
        assert _reuse.make_out_argument(SHAPE, like) == {}
        with _reuse.reuse_memory():
            assert _reuse.make_out_argument(SHAPE, like) != {}
            assert torch.func.vmap(lambda x: x + float(bool(_reuse.make_out_argument(SHAPE, x))))(like).equal(like)
        with _reuse.reuse_memory(False):
            assert _reuse.make_out_argument(SHAPE, like) == {}


@pytest.mark.parametrize("cell", ["convlstm", "convgru", "predrnn", "predrnn-v2"])
@pytest.mark.parametrize("network", [MSRNN, DBRNN])
def test_forecasts_with_pool_are_identical(network, cell, monkeypatch):
    """Hidden states that a hook holds are not overwritten."""
    model, frames = network(cell, 8), torch.rand(2, 2, 1, 16, 24)
    held, copies = [], []

    def keep(module, args, result):
        held.append(result[0])
        copies.append(result[0].clone())

    with torch.no_grad():
        plain = model(frames, 3)
        handles = [m.register_forward_hook(keep) for name, m in model.named_modules() if name.endswith("cells.5")]
        watched = model(frames, 3)
        for handle in handles:
            handle.remove()
        monkeypatch.setattr(_reuse, "_is_pooled", lambda *_: False)
        expected = model(frames, 3)
    assert len(held) == 4 * len(handles) > 0
    assert all(torch.equal(a, b) for a, b in zip(held, copies, strict=True))
    for results in (plain, watched):
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def test_memory_does_not_grow_with_forecast_length(monkeypatch):
    taken = []
    make = torch.empty

    def counted(*args, **options):
        if options == {"dtype": torch.uint8}:
            taken.append(args[0])
        return make(*args, **options)

    model, counts = DBRNN("convlstm", 8), []
    full = 4 * 8 * 160 * 16
    monkeypatch.setattr(torch, "empty", counted)
    for steps in (2, 9):
        taken.clear()
        with torch.no_grad():
            model(torch.rand(1, 1, 1, 160, 16), steps)
        counts.append(taken.count(full))
    assert counts[0] == counts[1] == 8 + 3


def test_resize_with_pool_is_identical(like):
    from fastds.models.db_rnn.module import upsample as up

    x = like[:, :, :, :4].contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = up(x), max_pool_2x2(x)
        with _reuse.reuse_memory():
            results = up(x), max_pool_2x2(x)
    for a, b in zip(results, expected, strict=True):
        assert torch.equal(a, b) and a.stride() == b.stride()


def test_pool_with_traced_networks():
    """Compilers and tracers see a network without reused memory."""
    model, frames = DBRNN("convlstm", 8), torch.rand(1, 2, 1, 16, 16)
    with torch.no_grad():
        expected = model(frames)
        exported = torch.export.export(model, (frames,), strict=False).module()(frames)
        traced = torch.jit.trace(model, (frames,), check_trace=False)(frames)
        model.forecaster = torch.compile(model.forecaster, backend="aot_eager")
        compiled = model(frames)
    torch.testing.assert_close((exported, traced, compiled), (expected,) * 3, rtol=0, atol=1e-6)
