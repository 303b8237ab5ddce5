# SPDX-License-Identifier: Apache-2.0
"""Print an MLCast experiment that trains a nowcaster of fastds.

    python -m fastds.models.mlcast NAME > FILE.yaml
    mlcast train --config FILE.yaml

The output is the default experiment of MLCast with the nowcaster NAME as its network. Needs mlcast.
"""

import sys


def build_experiment(name: str) -> str:
    """Build the experiment as YAML.

    Args:
        name: name of a preset that nowcasts.

    Raises:
        ImportError: If mlcast is not installed.
        ValueError: If the preset is unknown or does not nowcast.
    """
    import fiddle
    from fiddle.experimental.yaml_serialization import dump_yaml
    from mlcast.config import training_experiment

    from fastds.models.mlcast.interface import MLCastNetwork

    MLCastNetwork(name)  # raises errors now, not at the start of the training
    config = training_experiment.as_buildable()
    config.pl_module.network = fiddle.Config(MLCastNetwork, name)
    config.pl_module.loss_params = {}  # mlcast 0.1.0 skips every batch if temporal_lambda and a mask are set
    return dump_yaml(config)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        print(build_experiment(sys.argv[1]), end="")
    except (ImportError, ValueError) as error:
        sys.exit(f"error: {error}")
