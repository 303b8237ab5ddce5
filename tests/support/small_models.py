# SPDX-License-Identifier: Apache-2.0
"""Small networks of each task with random weights, and gridded fields for them."""

import numpy as np
import torch
import xarray as xr

from fastds import models

TEMPERATURE = {"name": "t", "standard_name": "air_temperature", "units": "K"}
HUMIDITY = {"name": "r", "standard_name": "relative_humidity", "units": "%"}


def radar_model(**options):
    torch.manual_seed(0)
    options |= {"num_features": 8, "offset_groups": 2, "extractor_blocks": 1, "reconstruction_blocks": 1}
    model = models.create("fczsm-small", **options)
    model.card.name, model.card.floor_dbz, model.card.ceiling_dbz = "tiny", 15.0, 70.0
    return model.eval()


def field_model():
    torch.manual_seed(1)
    options = {"encoder_options": {"channels": 8, "blocks": 2}, "dpfa_count": 1}
    model = models.create("inr-small", in_channels=1, **options, decoder_options={"width": 16, "heads": 2}).eval()
    model.card.input_variables = model.card.output_variables = [TEMPERATURE]
    return model


def generator():
    torch.manual_seed(2)
    options = {"width": 8, "post_width": 8, "pre_blocks": 1, "post_blocks": 1, "reduction": 4}
    model = models.create("wgan-gp-small", scale=2, **options).eval()
    model.head.weight.data.normal_()
    model.card.offset, model.card.range, model.card.coarsening = 0.0, 100.0, "mean"
    model.card.input_variables = [HUMIDITY]
    return model


def nowcaster():
    torch.manual_seed(3)
    model = models.create("ms-convlstm-small").eval()
    model.card.floor_dbz, model.card.ceiling_dbz, model.card.input_steps = 0.0, 60.0, 3
    return model


def gridded(variable):
    rng = np.random.default_rng(0)
    attrs = {key: value for key, value in variable.items() if key != "name"}
    low = 40 if variable is HUMIDITY else 260
    return xr.Dataset(
        {variable["name"]: (("time", "latitude", "longitude"), low + 20 * rng.random((2, 8, 10)), attrs)},
        coords={
            "time": np.datetime64("2019-01-01", "ns") + np.arange(2) * np.timedelta64(3, "h"),
            "latitude": ("latitude", 52.0 - 2.0 * np.arange(8), {"units": "degrees_north"}),
            "longitude": ("longitude", 105.0 + 2.0 * np.arange(10), {"units": "degrees_east"}),
        },
    )
