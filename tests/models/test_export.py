# SPDX-License-Identifier: Apache-2.0
"""Tests that exported ONNX files and AOTInductor packages give the results of the network at other sizes."""

import contextlib
import copy
import functools
import io
import json
import shutil

import pytest
import torch

import fastds
from fastds import cli, models
from fastds.models.baselines import interpolation
from fastds.models.baselines.super_resolution import SRCNN
from fastds.models.db_rnn.cells import build_cell
from fastds.models.export import deform, onnx_file, run
from fastds.models.export.program import raise_to_least_size
from fastds.nn import Conv3x3, ConvLSTMCell, GuidedDeformConv2d, PixelShuffleUpsample
from fastds.ops.impl.deform_conv2d.reference import deform_conv2d
from fastds.tasks import export as command
from tests.support import forked

onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra 'export')")
pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra 'export')")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra 'export')")

TINY = {"num_features": 4, "offset_groups": 1, "extractor_blocks": 0, "reconstruction_blocks": 0}
MOVED = {"alignment": "plain", "flow_guided": True, "residual": "advection"}
TINY_INR = {
    "encoder_options": {"channels": 4, "blocks": 1},
    "dpfa_count": 1,
    "decoder_options": {"width": 8, "heads": 2, "key_width": 2, "hidden": 1},
}
TINY_GAN = {"width": 4, "post_width": 4, "pre_blocks": 1, "post_blocks": 1, "reduction": 2, "scale": 2}
FRAMES = {"frames": 2}
SHORT = {"frames": 2, "steps": 1}
# Preset, its options, options of export, dimensions of the inputs in the file.
CASES = {
    "FCZSM": ("fczsm-s", {**TINY, **MOVED, "static_channels": 1, "middle_frame": True}, {}),
    "LagrangianRNN": ("nowcast-small", {"hidden": 4}, SHORT),
    "MLCastConvGRU": ("mlcast-convgru", {"num_blocks": 1}, SHORT),  # by the command
    "HumidityGenerator": ("wgan-gp-small", TINY_GAN, FRAMES),
    "INRDownscaler": ("inr-small", {**TINY_INR, "in_channels": 2, "static_channels": 1}, {}),
    "SRCNN": ("srcnn", {}, {}),
    "UNet": ("unet", {"width": 2}, {}),
    "UNet3D": ("unet3d", {"width": 2}, {}),
}


def tiny(name):
    """Return a small network without zero weights."""
    preset, options, arguments = CASES[name]
    torch.manual_seed(1)
    model = models.create(preset, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.05)
    return model.eval(), arguments


class Frozen(SRCNN):
    """Network for a fixed number of fields."""

    def forward(self, x):
        return super().forward(torch.stack([x[i] for i in range(len(x))]))


def session(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def sizes(values):
    return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}


def by_command(model, file, frames, steps):
    """Export with the command and return the result of fastds.export, whose summary the command must print."""
    done, made, weights = [], command.export, file.parent.parent / f"{file.parent.name}.safetensors"
    models.save(model, weights)
    file.write_text("before")
    words = ["export", weights, file, "--frames", frames, "--steps", steps]
    stderr = io.StringIO()
    with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stdout(io.StringIO()) as printed:
        patched.setattr(command, "export", lambda *a, **k: done.append(made(*a, **k)) or done[0])
        with contextlib.redirect_stderr(stderr):
            assert cli.main(list(map(str, words))) == 0
    assert printed.getvalue().strip().endswith(done[0].summary())
    steps_said = [line for line in stderr.getvalue().splitlines() if line.startswith("export: ")]
    assert [line.split(": ")[1] for line in steps_said] == ["1 of 3", "2 of 3", "3 of 3"]
    return done[0]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return a cached function that exports the tiny network of a case and returns (network, result of the export)."""

    @functools.cache
    def make(name):
        model, arguments = tiny(name)
        model.card.name = "tiny"
        file = tmp_path_factory.mktemp("export") / "out.onnx"
        return model, (by_command if name == "MLCastConvGRU" else fastds.export)(model.train(), file, **arguments)

    return make


def test_export_example_size_follows_the_network():
    given = {"batch": 2, "height": 9, "width": 12}
    assert raise_to_least_size(given, 8) == given and raise_to_least_size(given, 20) == {
        "batch": 2,
        "height": 21,
        "width": 24,
    }


@pytest.mark.parametrize("name", CASES)
def test_every_family_agrees_in_onnxruntime(name, exported):
    model, done = exported(name)
    assert model.training and any(p.requires_grad for p in model.parameters())  # the caller's stays as it is
    assert len(done.differences) == 2 and max(done.differences.values()) < 1e-4
    assert [p.name for p in done.path.parent.iterdir()] == ["out.onnx"]
    proto = onnx.load(done.path)
    assert {n.domain for n in proto.graph.node} == {""} and not proto.functions
    assert sizes(proto.graph.input) == {name: list(shape) for name, shape in done.inputs.items()}
    notes = {entry.key: entry.value for entry in proto.metadata_props}
    assert models.ModelCard.from_json(notes["fastds.card"]).name == "tiny"
    assert "x: " in proto.doc_string and str(fastds.__path__[0]) not in str(proto)


def test_a_generator_at_a_third_size(exported):
    model, done = exported("HumidityGenerator")
    model = copy.deepcopy(model).eval()
    torch.manual_seed(2)
    x = torch.rand(3, 2, 1, 8, 70)
    noise = torch.randn(model.noise_shape(x))
    y = session(done.path).run(None, {"x": x.numpy(), "noise": noise.numpy()})[0]
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(y), model(x, noise), rtol=0, atol=1e-5)
        assert (model(x, noise) - model(x, 0 * noise)).abs().max() > 1e-3  # the noise does count


def test_exported_points_match_a_finer_grid(exported):
    """Queries at the pixel centres of a finer grid give the output of the network on that grid."""
    model, done = exported("INRDownscaler")
    x, static = torch.rand(1, 2, 10, 12), torch.rand(1, 1, 10, 12)
    rows, columns = ((2 * torch.arange(n) + 1) / n - 1 for n in (25, 30))
    points = torch.cartesian_prod(rows, columns)
    given = {"x": x, "points": points, "scale": torch.tensor([2.5, 2.5]), "static": static}
    y = session(done.path).run(None, {name: t.numpy() for name, t in given.items()})[0]
    with torch.no_grad():
        ours = model(x, (25, 30), static=static).flatten(2).transpose(1, 2)
    torch.testing.assert_close(torch.from_numpy(y), ours, rtol=1e-4, atol=1e-5)


class FreePoints(SRCNN):
    """Cell that samples at points which it computes."""

    def __init__(self):
        super().__init__()
        self.cell = build_cell("trajgru", 1, 0, 2, links=3)

    def forward(self, x):
        return self.cell(x, 1 - x, None, None)[0]


def test_free_points_are_a_deform_conv(tmp_path):
    done = fastds.export(FreePoints(), tmp_path / "out.onnx")
    assert max(done.differences.values()) < 1e-4
    assert any(n.op_type == "DeformConv" for n in onnx.load(tmp_path / "out.onnx").graph.node)


def test_exported_package_runs_without_fastds(tmp_path):
    torch.manual_seed(3)
    model = models.create("srcnn", scale=2, kernels=(3, 1, 3))
    file = tmp_path / "out.pt2"
    assert max(fastds.export(model, file).differences.values()) < 1e-4
    x = torch.rand(3, 1, 21, 9)
    with torch.no_grad():
        torch.save((x, model.eval()(x)), tmp_path / "pair.pt")
    code = f"""
import os, sys
import torch
os.chdir({str(tmp_path)!r})
x, y = torch.load({str(tmp_path / "pair.pt")!r})
package = torch._inductor.aoti_load_package({str(file)!r})
torch.testing.assert_close(package(x), y, rtol=1e-4, atol=1e-5)
print(package.get_metadata()["fastds.card"], "fastds" in sys.modules)
"""
    done = forked.run(code, imports=forked.TORCH)
    assert done.returncode == 0, done.stderr[-2000:]
    card, _, imported = done.stdout.strip().rpartition(" ")
    assert imported == "False" and json.loads(card)["name"] == "srcnn"


def test_a_package_needs_a_compiler(tmp_path, monkeypatch):
    from torch._inductor import cpp_builder, exc

    def none():
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(ValueError, match=r"a .pt2 package needs a C\+\+ compiler: install one"):
        fastds.export(models.create("srcnn"), tmp_path / "out.pt2")


def test_export_removes_a_file_that_differs(exported, tmp_path, monkeypatch):
    """The exported file has other weights than the network."""
    file, other = tmp_path / "out.onnx", exported("SRCNN")[1].path
    file.write_bytes(b"before")
    monkeypatch.setattr(run, "trace", lambda *_, **__: None)
    monkeypatch.setattr(onnx_file, "write", lambda *given: shutil.copy(other, given[-1]))
    with pytest.raises(ValueError, match=r"differs from ours by .* of its range at 2 of 37 x 46.*nothing was written"):
        fastds.export(models.create("srcnn"), file)
    assert file.read_bytes() == b"before" and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (models.HumidityCritic, {}, "a HumidityCritic cannot be exported, expected one of DBRNN"),
        (lambda: models.create("ms-preciplstm-small"), {}, "cells of kind preciplstm cannot be exported"),
        (lambda: models.create("mlcast-convgru", num_blocks=1, noisy_decoder=True), {}, "it draws its noise inside"),
        (lambda: models.create("srcnn"), {"steps": 2}, "steps is no argument for SRCNN, which takes no arguments"),
        (lambda: models.create("wgan-gp-small"), {"steps": 2}, "which takes the argument frames"),
        (lambda: models.create("wgan-gp-small"), {"frames": 0}, "frames must be a positive number, got 0"),
        (Frozen, {}, "^the network cannot be exported, it does not leave its sizes open: .* batch"),
    ],
)  # fmt: skip
def test_export_error_messages(make, options, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        fastds.export(make(), tmp_path / "out.onnx", **options)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "MODEL and OUT are missing"),
        ("inr-small out.txt", "the output must end in .onnx or .pt2, got out.txt"),
        ("inr-small /dev/null", "the output must be a regular file, /dev/null is a device"),
        ("inr-small none/out.onnx", "no such folder: none"),
        ("inr-small out.onnx --steps 3", "steps is no option for INRDownscaler, which takes no options"),
        ("inr-small out.onnx --frames x", "--frames must be a whole number, got 'x'"),
        ("nothing out.onnx", "neither a file nor one of the shipped weights"),
        ("w.safetensors w.safetensors", "the output must be another file than the input"),
    ],
)  # fmt: skip
def test_command_refuses(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.safetensors").touch()
    assert cli.main(["export", *words.split()]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("fastds export: ") and message in printed and printed.count("\n") == 1


def test_command(exported):
    _, done = exported("MLCastConvGRU")
    printed = done.summary()
    assert "inputs: x (batch, 2, 1, height, width)" in printed and "1 of 52 x 40" in printed
    assert sizes(onnx.load(done.path).graph.output)["y"][:3] == ["batch", 1, 1]


@pytest.mark.parametrize("align", interpolation.ALIGNMENTS)
def test_interpolation_leaves_sizes_open(align):
    """The cache of interpolation matrices gets no tensor of the tracer."""

    class Fine(torch.nn.Module):
        def forward(self, x):
            return interpolation.interpolate(x, 3, "bicubic", align)

    rows, columns = torch.export.Dim("rows", min=2), torch.export.Dim("columns", min=2)
    interpolation._build_cached_matrix.cache_clear()
    program = torch.export.export(Fine(), (torch.rand(2, 7, 5),), dynamic_shapes=({1: rows, 2: columns},), strict=False)
    x = torch.rand(2, 9, 4, dtype=torch.float32)
    torch.testing.assert_close(program.module()(x), Fine()(x))
    torch.export.export(Fine(), (torch.rand(2, 7, 5),), strict=False)
    assert type(interpolation.build_interpolation_matrix(7, 3, "bicubic", align)) is torch.Tensor


def test_deform_conv2d_of_all_taps_at_once():
    torch.manual_seed(4)
    for stride, padding, dilation, groups, blocks in (
        ((1, 1), (1, 1), (1, 1), 2, 1), ((2, 1), (0, 2), (2, 1), 4, 2), ((1, 1), (0, 0), (0, 0), 1, 1),
    ):  # fmt: skip
        x, weight = torch.randn(2, 8, 9, 7), torch.randn(6, 8 // blocks, 3, 3)
        out = [(n + 2 * p - 2 * d - 1) // s + 1 for n, p, d, s in zip((9, 7), padding, dilation, stride, strict=True)]
        offset = 3 * torch.randn(2, 18 * groups, *out)
        offset.view(-1)[::7] = offset.view(-1)[::7].round()
        offset[0, 0, 0, 0] = torch.nan
        for mask in (None, torch.rand(2, 9 * groups, *out)):
            args = [t if t is None else t.double() for t in (x, offset, weight, torch.randn(6), mask)]
            args = (*args[:4], stride, padding, dilation, args[4])
            torch.testing.assert_close(deform.deform_conv2d(*args), deform_conv2d(*args))


class Own(torch.nn.Module):
    """A network of a user with modules of fastds.nn."""

    def __init__(self):
        super().__init__()
        self.embed, self.align = Conv3x3(1, 8), GuidedDeformConv2d(8, 8, offset_groups=2)
        self.memory, self.up = ConvLSTMCell(8, 8), PixelShuffleUpsample(8, 1, upscale_factor=2)

    def forward(self, x):
        maps = self.embed(x.flatten(0, 1), activation="leaky_relu").unflatten(0, x.shape[:2])
        states, _ = self.memory.sequence(maps)
        return self.up(self.align(maps[:, -1], states[:, -1], activation="leaky_relu"))


def test_torch_export_of_a_user_network(tmp_path):
    network, x = Own().eval(), torch.rand(1, 3, 1, 12, 16)
    with pytest.raises(
        ValueError, match=r'custom network by torch.onnx.export\(.* `with fastds.use_backend\("reference"\)'
    ):
        fastds.export(network, tmp_path / "own.onnx")
    with fastds.use_backend("reference"):
        torch.onnx.export(network, (x,), tmp_path / "own.onnx", dynamo=True, verbose=False)
    with torch.no_grad():
        torch.testing.assert_close(onnx_file.load_runner(tmp_path / "own.onnx")(x), network(x), rtol=1e-4, atol=1e-5)
    assert "torch.onnx.export" in fastds.use_backend.__doc__
