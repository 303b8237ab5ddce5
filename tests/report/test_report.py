# SPDX-License-Identifier: Apache-2.0
"""Tests of the HTML report: tables, maps, orientation, and the slider in a browser."""

import base64
import io
import re
import shutil
import subprocess

import numpy as np
import pytest
import xarray as xr
from PIL import Image

import fastds
from fastds.cli import main
from fastds.data import RAIN_THRESHOLDS, coarsen_dataset, open_dataset, save_dataset, synthetic_event, to_reflectivity
from fastds.plot.style import MISSING_COLOUR
from fastds.report import MAX_FRAMES, MapGrid, Maps, Page, check_report, radar_style, select_evenly
from fastds.report.maps import encode_png
from fastds.studies import nowcast as study_nowcast
from fastds.studies import radar as study_radar
from fastds.tasks.nowcast.forecasts import Forecasts
from fastds.tasks.nowcast.report import EvaluationReport, make_lead_charts
from fastds.tasks.nowcast.scores import ComparedFields
from fastds.tasks.radar.report import report_files
from tests.support import forked
from tests.support.reports import parsed

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def pixels(uri):
    """Decode a data URI into (H, W, 3)."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))


def colour(text):
    return tuple(int(text[k : k + 2], 16) for k in (1, 3, 5))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    truth = synthetic_event(5, 9, (64, 80))[["reflectivity"]]
    truth.reflectivity[:, :6, :6] = np.nan
    save_dataset(truth, folder / "truth.nc")
    save_dataset(coarsen_dataset(truth), folder / "in.nc")
    assert main(["downscale", f"{folder}/in.nc", f"{folder}/out.nc"]) == 0
    assert main(["nowcast", f"{folder}/truth.nc", f"{folder}/now.nc", "--steps", "3", "--every", "5min"]) == 0
    return folder


@pytest.fixture(scope="module")
def downscaled(folder):
    """Return the page of a downscaled dataset and its table."""
    table = fastds.evaluate(folder / "out.nc", folder / "truth.nc", input=folder / "in.nc", report=folder / "out.html")
    return folder / "out.html", table


@pytest.fixture(scope="module")
def forecast(folder):
    table = fastds.evaluate(folder / "now.nc", folder / "truth.nc", report=folder / "now.html")
    return folder / "now.html", table


@pytest.mark.parametrize("kind", ["downscaled", "forecast"])
def test_page_is_self_contained(request, kind):
    path, _ = request.getfixturevalue(kind)
    page = parsed(path)
    for tag, attrs in page.tags:
        for name in ("src", "srcset", "href"):
            assert attrs.get(name, "data:").startswith(("data:", "#")), (tag, attrs[name][:80])
    text = re.sub(r"data:image/png;base64,[\w+/=]+", "", path.read_text())
    assert not re.search(r"@import|url\(|<script[^>]+src|https?://(?!creativecommons)", text)
    images = page.all("img")
    assert images and all(len(image["alt"]) > 20 for image in images)
    assert page.all("html")[0]["lang"] == "en" and page.all("meta")[1]["name"] == "viewport"
    assert "prefers-color-scheme: dark" in text and path.stat().st_size < 2e6


@pytest.mark.parametrize("kind", ["downscaled", "forecast"])
def test_page_numbers_equal_the_table(request, kind):
    path, table = request.getfixturevalue(kind)
    page = parsed(path)
    cells = iter(page.texts("td", "th"))
    for rich in table.tables():
        assert [next(cells) for _ in rich.columns] == [column.header for column in rich.columns]
        for row in zip(*(column.cells for column in rich.columns), strict=True):
            assert tuple(next(cells) for _ in row) == row
    assert next(cells, None) is None
    assert page.texts("caption") == [rich.title for rich in table.tables()]


@pytest.mark.parametrize("kind", ["downscaled", "forecast"])
def test_complete_page_has_no_note_on_omissions(request, kind):
    path, _ = request.getfixturevalue(kind)
    assert not re.search(r"(Maps|spectra) of \d+ of \d+", path.read_text())


def test_frames_of_downscaled_fields(downscaled):
    path, _ = downscaled
    page = parsed(path)
    stacks, frames = page.all("div", "stack"), page.all("img", "frame")
    assert len(stacks) == 4 and frames[0]["alt"].startswith("input, 2024-06-01 12:00 UTC: ")
    titles = [frame["alt"].partition(": ")[0] for frame in frames]
    assert sum(title.startswith("truth") for title in titles) == 9  # the input has 5 of the 9 times
    assert sum(title.startswith("input") for title in titles) == 5 and len(page.all("p", "frame")) == 4
    assert "truth, 2024-06-01 12:05 UTC" in titles and "fczsm-small, 2024-06-01 12:40 UTC" in titles
    assert page.all("input")[0]["max"] == "8" and len(page.all("img", "on")) + len(page.all("p", "on")) == 4


def test_frames_of_forecasts(forecast):
    path, table = forecast
    titles = [frame["alt"].partition(": ")[0] for frame in parsed(path).all("img", "frame")]
    observed = [title for title in titles if title.startswith("observed")]
    assert len(observed) == 6 and observed[2].endswith(", observed") and observed[3].endswith("+5 min")
    assert sum(title.startswith("extrapolation") for title in titles) == 3
    assert f"one of {table.starts}" in path.read_text()


def test_curves_by_lead_are_of_their_scores(forecast):
    _, table = forecast
    columns = {"CSI at 0.5 mm/h": ("csi", 0.5), "CSI at 5 mm/h": ("csi", 5.0), "Squared error (dBZ²)": ("mse", None)}
    for chart, (title, (score, rate)) in zip(make_lead_charts(table), columns.items(), strict=False):
        assert chart.title == f"{title} by lead"
        for name, row in table.rows.items():
            values = row[score] if rate is None else row[score][:, RAIN_THRESHOLDS.index(rate)]
            assert f"{name}: {values[0]:.3g} to {values[-1]:.3g}" in chart.alt


def test_maps_of_all_methods_share_the_mask(folder):
    z = np.full((3, 64, 80), 20.0, np.float32)
    holed = z.copy()
    holed[:, 3:5] = np.nan
    with open_dataset(folder / "now.nc") as made, open_dataset(folder / "truth.nc") as truth:
        page = EvaluationReport("x.html", Forecasts(made), [to_reflectivity(truth)] * 2, "ours", None)
        page.add(ComparedFields(0, z, z, {"ours": holed, "persistence": z}, None))
    np.testing.assert_array_equal(page.drawn[3]["persistence"], holed)


def test_the_first_start_with_most_rain_is_drawn(tmp_path):
    """The fields grow by 1 dB per step; from the sixth on both lead times exceed 10 mm/h (39.01 dBZ)."""
    truth = synthetic_event(5, 10, (32, 32))[["reflectivity", "crs"]]
    grown = np.broadcast_to(34 + np.arange(10, dtype="f4")[:, None, None], (10, 32, 32))
    truth["reflectivity"] = truth.reflectivity.copy(data=grown)
    made = fastds.nowcast("persistence", truth, steps=2, every="5min", coarsen=1)
    fastds.evaluate(made, truth, report=tmp_path / "now.html")
    texts = [frame["alt"].partition(" dBZ")[0] for frame in parsed(tmp_path / "now.html").all("img", "frame")]
    observed = [("12:15 UTC, observed", 37), ("12:20 UTC, observed", 38), ("12:25 UTC, observed", 39)]
    observed += [("12:30 UTC, +5 min", 40), ("12:35 UTC, +10 min", 41)]
    assert texts[:5] == [f"observed, 2024-06-01 {label}: up to {z}" for label, z in observed]
    assert texts[5:7] == [f"persistence (PRED), 2024-06-01 {label}: up to 39" for label, _ in observed[3:]]


def test_page_describes_the_run(downscaled):
    page = parsed(downscaled[0])
    facts = dict(zip(page.texts("dt"), page.texts("dd"), strict=True))
    card = fastds.models.load_card("fczsm-small")
    assert facts["licence"] == card.licence and facts["trained on"] == "\n".join(card.training_data)
    assert facts["command"] == "called from Python" and facts["fastds"] == fastds.__version__
    assert facts["file"].endswith("in.nc") and facts["variable"] == "reflectivity (dBZ)" and facts["time_factor"] == "2"
    assert facts["times"] == "2024-06-01 12:00 UTC to 2024-06-01 12:40 UTC"


def test_page_shows_the_command(folder):
    words = ["downscale", "in.nc", "again.nc", "--truth", "truth.nc", "--report", "again.html"]
    code = f"import os, sys; from fastds.cli import main; os.chdir({str(folder)!r}); sys.exit(main())"
    done = forked.run(code, *words)
    assert done.returncode == 0, done.stderr
    assert f"fastds {' '.join(words)}" in parsed(folder / "again.html").texts("dd")


@pytest.mark.parametrize("verb", ["downscale", "nowcast"])
def test_without_a_truth_a_page_has_the_maps(folder, monkeypatch, verb):
    monkeypatch.chdir(folder)
    source = {"downscale": "in.nc", "nowcast": "truth.nc --steps 2 --start 2024-06-01T12:20"}[verb].split()
    assert main([verb, source[0], "alone.nc", *source[1:], "--report", "alone.html"]) == 0
    page = parsed(folder / "alone.html")
    assert len(page.all("div", "stack")) == 2 and not page.all("table")
    names = {"downscale": "fczsm-small", "nowcast": "nowcast-small"}
    texts = [frame["alt"].partition(" dBZ")[0] for frame in page.all("img", "frame")]
    assert sum(text.startswith(names[verb]) for text in texts) == {"downscale": 9, "nowcast": 2}[verb]
    if verb == "nowcast":
        strongest = open_dataset("truth.nc").reflectivity.max(("y", "x")).values
        labels = ["10 UTC, observed", "15 UTC, observed", "20 UTC, observed", "25 UTC, +5 min", "30 UTC, +10 min"]
        shown = zip(labels, strongest[2:7], strict=True)
        assert texts[:5] == [f"observed, 2024-06-01 12:{label}: up to {z:.0f}" for label, z in shown]


def test_page_with_tables_only(downscaled, forecast, tmp_path):
    for _, table in (downscaled, forecast):
        table.to_html(tmp_path / "table.html")
        page = parsed(tmp_path / "table.html")
        assert page.texts("caption") == [rich.title for rich in table.tables()] and not page.all("img")


def test_user_text_is_escaped():
    text = Page("<b>bold</b>", {"Run": {"title": "<script>alert(1)</script>"}}).html()
    assert "<b>" not in text and "<script>" not in text and "&lt;script&gt;" in text


def test_page_shows_the_model_card(folder, tmp_path):
    network = fastds.load("fczsm-small")
    network.card.licence, network.card.training_data = "", ["my own radar"]
    fastds.models.save(network, tmp_path / "mine.safetensors")
    fine = fastds.downscale(tmp_path / "mine.safetensors", folder / "in.nc")
    files = {"truth": folder / "truth.nc", "input": folder / "in.nc"}
    for chosen, expected in (({}, None), ({"model": tmp_path / "mine.safetensors"}, "my own radar")):
        fastds.evaluate(fine, **files, report=tmp_path / "mine.html", **chosen)
        page = parsed(tmp_path / "mine.html")
        assert dict(zip(page.texts("dt"), page.texts("dd"), strict=True)).get("trained on") == expected


@pytest.mark.parametrize(
    "options", ["--scale 2", "--model wgan-gp-small-x2 --members 4 --var r"], ids=["inr", "members"]
)
def test_gridded_fields(tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    latitude, longitude = np.linspace(50, 42, 17), np.linspace(0, 11.5, 24)
    attrs = {"r": ("%", "relative_humidity"), "t": ("K", "air_temperature"), "u": ("m s**-1", "eastward_wind"),
             "z": ("m**2 s**-2", "geopotential")}  # fmt: skip
    rows, columns = np.meshgrid(latitude, longitude, indexing="ij")
    wave = np.sin(rows) * np.cos(columns)
    means = {"r": 50 + 30 * wave, "t": 255 + 5 * wave, "u": 10 * wave, "z": 54000 + 900 * wave}
    fields = {
        name: (("time", "latitude", "longitude"), np.stack([means[name]] * 3).astype("f4"),
               {"units": units, "standard_name": standard}) for name, (units, standard) in attrs.items()
    }  # fmt: skip
    times = np.datetime64("2020-01-01", "ns") + np.arange(3) * np.timedelta64(6, "h")
    north, east = ({"standard_name": name} for name in ("latitude", "longitude"))
    coords = {"time": times, "latitude": ("latitude", latitude, north), "longitude": ("longitude", longitude, east)}
    xr.Dataset(fields, coords).to_netcdf("in.nc", engine="h5netcdf")
    assert main(["downscale", "in.nc", "out.nc", *options.split(), "--report", "out.html"]) == 0
    page = parsed(tmp_path / "out.html")
    titles = [frame["alt"].partition(": ")[0] for frame in page.all("img", "frame")]
    names = ["input", "member 1", "member 2", "member 3"] if "members" in options else ["input", "output"]
    times = [f"2020-01-01 {hour} UTC" for hour in ("00:00", "06:00", "12:00")]
    assert titles == [f"{name}, {time}" for name in names for time in times]
    assert "r (%)" in (tmp_path / "out.html").read_text() and page.texts("dt").count("trained on") == 1


def test_learning_curves(folder, tmp_path, capfd):
    pytest.importorskip("lightning", reason="training needs Lightning (extra 'train')")
    (tmp_path / "data").mkdir()
    shutil.copy(folder / "truth.nc", tmp_path / "data")
    words = (
        f"train radar --data.path={tmp_path}/data --output={tmp_path}/run --data.epoch-samples=2 --data.batch-size=2"
    )
    words += " --model.options.num-features=8 --model.options.offset-groups=2 --model.options.extractor-blocks=1"
    words += " --model.options.reconstruction-blocks=1 --data.crop=16 --threads=1 --progress=false"
    words += f" --data.validation-samples=4 --report={tmp_path}/run/page.html"
    for steps in (2, 4, 4):  # the last has nothing to do
        assert main([*words.split(), f"--max-steps={steps}"]) == 0, capfd.readouterr().err
        page = parsed(tmp_path / "run" / "page.html")
        charts = [image["alt"].partition(" by step")[0] for image in page.all("img")]
        assert charts[0] == "loss" and "val_mse_total" in charts
        facts = dict(zip(page.texts("dt"), page.texts("dd"), strict=True))
        assert (facts["max_steps"], facts["data.crop"]) == (str(steps), "16")
    assert "mse_trilinear" in page.texts("th")
    assert main([*words.replace("page.html", "page.txt").split()]) == 2
    assert "--report must be a file that ends in .html" in capfd.readouterr().err


def test_study_reports(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study_radar, "TEST_BLOCKS", {"truth.nc": (0, None, 2)})
    monkeypatch.setattr(study_nowcast, "TEST_STARTS", {"truth.nc": 1})
    path = tmp_path / "study.html"
    assert main(["study", "radar", f"--data.path={folder}", "--floors=[15]", "--modes=[dbz]", f"--report={path}"]) == 0
    printed = capsys.readouterr().out.splitlines()[-1].split(" | ")
    cells = parsed(path).texts("td")
    assert [cells[7 * k + 3] for k in range(4)] == printed[3:7] and cells[23] == "model"
    assert cells[27] == printed[8].removesuffix(" |")
    assert main(["study", "nowcast", f"--data.path={folder}", "--starts=1", f"--report={path}"]) == 0
    page = parsed(path)
    assert all(caption.startswith("truth.nc: ") for caption in page.texts("caption")) and len(page.all("img")) >= 3
    assert main(["study", "nowcast", f"--data.path={folder}", "--against=x", f"--report={path}"]) == 2
    assert "--report must be left out with --against x" in capsys.readouterr().err


# ---- maps


def field(rows, columns, y, x, units="m"):
    values = np.zeros((rows, columns), "f4")
    values[0, -1] = 40  # at the first y and the last x
    attrs = {"units": units}, {"units": units}
    if units == "degrees":
        attrs = {"standard_name": "latitude"}, {"standard_name": "longitude"}
    coords = {"y": ("y", y, attrs[0]), "x": ("x", x, attrs[1])}
    return xr.DataArray(values, dims=("y", "x"), coords=coords, name="z")


@pytest.mark.parametrize("up", [True, False])
@pytest.mark.parametrize("units", ["m", "degrees"])
def test_maps_are_north_up(up, units):
    y = np.linspace(40, 50, 6) if up else np.linspace(50, 40, 6)
    z = field(6, 8, y, np.linspace(0, 14, 8), units)
    seen = pixels(encode_png(MapGrid.of(z).up(z.values), radar_style()))
    place = np.argwhere((seen != 255).any(-1)).tolist()
    assert place == [[5, 7]] if up else place == [[0, 7]]
    west = z.isel(x=slice(None, None, -1))
    assert np.array_equal(pixels(encode_png(MapGrid.of(west).up(west.values), radar_style())), seen)


@pytest.mark.parametrize("rows", [slice(None), slice(None, None, -1)])
def test_grids_without_a_unit(rows):
    z = field(6, 8, np.arange(6.0), np.arange(8.0), "")[rows]
    lat, lon = np.meshgrid(np.linspace(40, 45, 6)[rows], np.linspace(0, 7, 8), indexing="ij")
    places = {"lat": (("y", "x"), lat), "lon": (("y", "x"), lon)}
    flipped = rows == slice(None)
    assert MapGrid.of(z).flip == (flipped, False)
    named = z.rename(y="lat", x="lon")
    assert MapGrid.of(named).unit == "degrees" and MapGrid.of(named).flip == (flipped, False)
    bare = z.drop_vars(["y", "x"])
    grid = MapGrid.of(bare.assign_coords(places))
    assert (grid.unit, grid.flip, grid.aspect) == ("pixels", (flipped, False), 8 / 6)
    assert MapGrid.of(bare).flip == (False, False)


def test_ticks_and_shape():
    grid = MapGrid.of(field(5, 11, np.arange(5) * -1e3, np.arange(11) * 1e3))
    assert (grid.left, grid.right, grid.bottom, grid.top, grid.unit) == (-0.5, 10.5, -4.5, 0.5, "km")
    assert grid.aspect == pytest.approx(11 / 5)
    x, y = grid.ticks()
    assert dict((label, share) for share, label in x)["5"] == pytest.approx(0.5)
    assert dict((label, share) for share, label in y)["\N{MINUS SIGN}2"] == pytest.approx(0.5)
    globe = MapGrid.of(field(19, 36, np.linspace(90, -90, 19), np.arange(0, 360, 10.0), "degrees"))
    assert globe.aspect == pytest.approx(360 / 190) and {"90°E", "0°"} <= {label for _, label in globe.ticks()[0]}
    assert "60°S" in {label for _, label in globe.ticks()[1]}


def test_maps_distinguish_missing_and_dry():
    style = radar_style()
    z = np.array([[np.nan, -32.0, 4.9], [5.0, 74.0, 80.0]])
    seen = pixels(encode_png(z, style))
    assert tuple(seen[0, 0]) == colour(MISSING_COLOUR) and (seen[0, 1:] == 255).all()
    assert [tuple(c) for c in seen[1]] == [colour(style.bars[0]), colour(style.bars[-1]), colour(style.bars[-1])]
    assert style.describe(z) == "up to 80 dBZ, 40 % of the area at least 15 dBZ, 17 % missing"
    assert style.describe(np.full((2, 2), np.nan)) == "all missing"
    assert style.describe(np.full((2, 2), -32.0)).startswith("no echo, 0 %")


def test_large_fields_are_subsampled():
    maps = Maps(MapGrid.of(field(4, 4, np.arange(4.0), np.arange(4.0))), ["a", "b"], radar_style())
    maps.add("now", {"a": np.zeros((1000, 1600)), "b": np.zeros((500, 700))})
    assert pixels(maps.pictures["a"][0].uri).shape[:2] == (333, 533)
    assert pixels(maps.pictures["b"][0].uri).shape[:2] == (500, 700)
    assert maps.notes == ["Maps of 1000 x 1600 pixels show every 3rd pixel each way."]


def test_long_series_are_thinned(folder, tmp_path):
    truth = synthetic_event(5, 5, (32, 32))[["reflectivity"]].isel(time=np.arange(61) % 5)
    truth = truth.assign_coords(time=truth.time.values[0] + np.arange(61) * np.timedelta64(5, "m"))
    fastds.evaluate(truth, truth, report=tmp_path / "many.html")
    page = parsed(tmp_path / "many.html")
    shown = sum(frame["alt"].startswith("truth") for frame in page.all("img", "frame"))
    assert MAX_FRAMES - 3 <= shown <= MAX_FRAMES
    assert "Maps and spectra of 8 of 30 pairs of input times." in (tmp_path / "many.html").read_text()
    assert select_evenly(3, 24) == [0, 1, 2] and select_evenly(100, 3) == [0, 50, 99]


# ---- targets


def test_report_does_not_replace_inputs(folder, tmp_path, capsys):
    (tmp_path / "x.html").write_text("")
    (tmp_path / "y.html").symlink_to(tmp_path / "x.html")
    for path, error, words in (
        ("out.nc", ValueError, "must be a file that ends in .html"),
        ("y.html", ValueError, "must be another file than the input and the output"),
        ("no/z.html", FileNotFoundError, "no such folder"),
    ):
        with pytest.raises(error, match=words):
            check_report(tmp_path / path, None, tmp_path / "x.html")
    words = ["downscale", f"{folder}/in.nc", f"{tmp_path}/o.nc", "--report"]
    assert main([*words, f"{tmp_path}/no/z.html"]) == 2 and not (tmp_path / "o.nc").exists()
    assert capsys.readouterr().err.startswith("fastds downscale: --report: no such folder")
    assert main([*words, "page.txt"]) == 2
    assert "--report must be a file that ends in .html, got page.txt" in capsys.readouterr().err


def test_failed_report_keeps_the_old_page(tmp_path, monkeypatch):
    (tmp_path / "page.html").write_text("old")
    monkeypatch.setattr("pathlib.Path.write_text", lambda *args, **options: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        Page("new").write(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


# ---- in a browser

PROBE = """<pre id="probe"></pre><script>{
const seen = [], slider = document.getElementById("time");
for (const k of [0, 1, Number(slider.max)]) {
  slider.value = k;
  slider.dispatchEvent(new Event("input"));
  const on = document.querySelectorAll(".frame.on");
  seen.push([document.getElementById("label").value, slider.getAttribute("aria-valuetext"), on.length,
    on[2].naturalWidth, getComputedStyle(on[2]).visibility, on[2].alt, on[2].src.length].join("|"));
}
seen.push(document.documentElement.scrollWidth <= innerWidth);
seen.push(document.querySelectorAll(".frame:not(.on)").length);
document.getElementById("probe").textContent = seen.join("\\n");
}</script></body>"""


@pytest.fixture
def browse(tmp_path):
    """Return a function of (page, width) that runs the page in a browser.

    The function returns the document after its scripts have run, and the messages on the console.
    """
    if BROWSER is None:
        pytest.skip("no chromium on this machine")

    def dump(text, width):
        (tmp_path / "page.html").write_text(text)
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
        options += [f"--window-size={width},900", "--enable-logging=stderr", "--virtual-time-budget=2000", "--dump-dom"]
        command = [BROWSER, *options, (tmp_path / "page.html").as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    return dump


@pytest.mark.parametrize("width", [1400, 500])
def test_the_slider_in_a_browser(downscaled, browse, width):
    dom, console = browse(downscaled[0].read_text().replace("</body>", PROBE), width)
    assert not console
    *frames, fits, hidden = re.search(r'<pre id="probe">(.*?)</pre>', dom, re.DOTALL)[1].split("\n")
    rows = [frame.split("|") for frame in frames]
    assert [row[0] for row in rows] == [f"2024-06-01 {time} UTC" for time in ("12:00", "12:05", "12:40")]
    for label, spoken, shown, drawn, visible, alt, _ in rows:
        assert spoken == label and shown == "4" and drawn == "80" and visible == "visible"
        assert alt.startswith(f"truth, {label}: ")
    assert len({row[-1] for row in rows}) > 1 and fits == "true" and hidden == str(4 * 8)


def test_browser_console_reports_errors(browse):
    _, console = browse("<body><script>nonsense()</script></body>", 800)
    assert len(console) == 1 and "nonsense is not defined" in console[0]


def test_times_of_input_and_output_may_differ_by_jitter(tmp_path, monkeypatch):
    """A difference of 3 s is within the tolerance of a tenth of the time step."""
    event = coarsen_dataset(synthetic_event(5, 6, (64, 64)))[["reflectivity"]]
    save_dataset(event, tmp_path / "in.nc")
    made = fastds.downscale("advection", event)
    save_dataset(made.assign_coords(time=made.time + np.timedelta64(3, "s")), tmp_path / "out.nc")
    shown, add = [], Maps.add

    def record(self, time, fields):
        shown.append(fields["input"] is not None)
        add(self, time, fields)

    monkeypatch.setattr(Maps, "add", record)
    report_files(tmp_path / "out.nc", tmp_path / "in.nc", report=tmp_path / "r.html")
    assert shown == [k % 2 == 0 for k in range(len(shown))] and sum(shown) == event.sizes["time"]
