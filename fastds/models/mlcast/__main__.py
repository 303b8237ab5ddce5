# SPDX-License-Identifier: Apache-2.0
"""python -m fastds.models.mlcast NAME prints MLCast's own experiment with the nowcaster NAME as its network, for
`mlcast train --config FILE.yaml`. Needs mlcast.
"""

import sys


def experiment(name: str) -> str:
    """The experiment as YAML. Raises: ImportError without mlcast; ValueError for what is no nowcaster."""
    import fiddle
    from fiddle.experimental.yaml_serialization import dump_yaml
    from mlcast.config import training_experiment

    from fastds.models.mlcast.interface import MLCastNetwork

    MLCastNetwork(name)  # says now what it would say at the start of the training
    config = training_experiment.as_buildable()
    config.pl_module.network = fiddle.Config(MLCastNetwork, name)
    config.pl_module.loss_params = {}  # with its temporal_lambda and a mask mlcast 0.1.0 takes every batch for missing
    return dump_yaml(config)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        print(experiment(sys.argv[1]), end="")
    except (ImportError, ValueError) as error:
        sys.exit(f"error: {error}")
