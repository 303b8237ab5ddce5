# SPDX-License-Identifier: Apache-2.0
"""The paper's table: every baseline and ablation trained for the same samples, scored on the test regions.

python -m fastds.studies.humidity --config wgan-gp-small --data FOLDER --epochs 4
"""

import dataclasses
import json
import pathlib
import sys

from jsonargparse import ArgumentParser

from fastds import models
from fastds.tasks.humidity.config import GANConfig, parse_arguments
from fastds.tasks.humidity.test_table import evaluate, format_table
from fastds.tasks.humidity.training import train


def variants(config: GANConfig) -> dict[str, GANConfig]:
    """The rows of the paper's tables 3 and 4 that are trained: name -> configuration, config itself last.

    SRCNN: squared error alone. SRGAN: its generator and discriminator in small, absolute error, the GAN's losses. GAN:
    config's networks with the GAN's losses. The last two ablations are of both networks.
    """
    scale = models.create(config.generator, **config.generator_options).config["scale"]
    align = "grid" if config.data.coarsening == "decimate" else "center"
    alone = dataclasses.replace(config.loss, content="mse", quiet_weight=0.0, adversarial_weight=0.0, critic_steps=0)
    gan = dataclasses.replace(config.loss, adversary="gan")
    quiet_gan = dataclasses.replace(gan, content="l1", quiet_weight=0.0)

    def without(flag):
        options = ("generator_options", "critic_options")
        return dataclasses.replace(config, **{name: getattr(config, name) | {flag: False} for name in options})

    return {
        "SRCNN": dataclasses.replace(
            config, generator="srcnn", generator_options={"scale": scale, "align": align}, loss=alone
        ),
        "SRGAN": dataclasses.replace(
            config, generator="srgan-small", generator_options={"scale": scale}, critic="srgan",
            critic_options={"width": 16}, loss=quiet_gan,
        ),
        "GAN": dataclasses.replace(config, loss=gan),
        "no residual blocks": without("use_resblocks"),
        "no CBAM": without("use_cbam"),
        "WGAN-GP": config,
    }  # fmt: skip


def run(config: GANConfig, epochs: int, members: int = 10) -> list[dict[str, dict]]:
    """Train every variant into a folder of its own under config.output, for the same samples, and score all.

    A variant whose folder holds a checkpoint goes on from there. Returns: evaluate's table of every test region.
    """
    networks = {}
    for name, variant in variants(config).items():
        optimiser = dataclasses.replace(variant.optimiser, epochs=epochs)
        folder = str(pathlib.Path(config.output) / name.lower().replace(" ", "-"))
        networks[name] = models.load(
            train(dataclasses.replace(variant, optimiser=optimiser, output=folder, max_minutes=None))
        )
    return evaluate(networks, config, members)


def main(arguments: list[str] | None = None) -> int:
    """The command: returns the exit status."""
    parser = ArgumentParser(prog="python -m fastds.studies.humidity", description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="training configuration that names the regions")
    parser.add_argument("--data", required=True, help="folder of its files")
    parser.add_argument("--epochs", type=int, default=4, help="of every training, with its whole schedule")
    parser.add_argument("--members", type=int, default=10)
    parser.add_argument("--output", default="study-gan", help="folder of the trainings")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--json", help="file for all numbers")
    options = parser.parse_args(arguments)
    try:
        config = parse_arguments(["--config", options.config, "--data.path", options.data])
        config = dataclasses.replace(config, output=options.output, threads=options.threads, progress=False)
        tables = run(config, options.epochs, options.members)
    except (FileNotFoundError, ImportError, ValueError, FloatingPointError) as error:
        print(f"fastds.studies.humidity: {error}", file=sys.stderr)
        return 2
    print("\n\n".join(format_table(table) for table in tables))
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(tables, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
