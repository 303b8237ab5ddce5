# SPDX-License-Identifier: Apache-2.0
"""Reference implementation of the humidity generator and critic in plain PyTorch.

It follows the formulas of the papers and reads a state dict. Mixed layers are two separate convolutions, and the
recurrence precomputes nothing. Operations are counted on this graph.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def mixed_conv(p: dict, x: Tensor, stride: int = 1, mixing: str = "parallel") -> Tensor:
    """Compute a mixed convolution.

    Args:
        p: parameters.
        x: (B, C, H, W). For the 2x2 kernels it is padded at the bottom and right.
        stride: in pixels.
        mixing: "parallel" (half of the outputs each), "sum", or "sequential" (3x3, then 2x2).
    """
    if mixing == "sequential":
        x = F.conv2d(x, p["weight3"], p["bias3"], stride, 1)
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), p["weight2"], p["bias"])
    two = F.conv2d(F.pad(x, (0, 1, 0, 1)), p["weight2"], stride=stride)
    three = F.conv2d(F.pad(x, (1, 1, 1, 1)), p["weight3"], stride=stride)
    y = torch.cat([two, three], 1) if mixing == "parallel" else two + three
    return y + p["bias"][:, None, None]


def mlp(p: dict, v: Tensor) -> Tensor:
    return F.linear(F.relu(F.linear(v, p["0.weight"], p["0.bias"])), p["2.weight"], p["2.bias"])


def squeeze_excitation(p: dict, x: Tensor) -> Tensor:
    return torch.sigmoid(mlp(sub(p, "mlp"), x.mean((2, 3))))[:, :, None, None] * x


def cbam(p: dict, x: Tensor) -> Tensor:
    shared = sub(p, "mlp")
    gate = torch.sigmoid(mlp(shared, x.mean((2, 3))) + mlp(shared, x.flatten(2).max(2).values))
    x = gate[:, :, None, None] * x
    maps = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True).values], 1)
    return torch.sigmoid(F.conv2d(maps, p["spatial.weight"], p["spatial.bias"], padding=3)) * x


def norm(p: dict, x: Tensor, kind: str, training: bool) -> Tensor:
    """Normalise x.

    Args:
        p: parameters.
        x: (B, C, H, W).
        kind: "batch", "layer" (over channels and space) or "none".
        training: True if "batch" uses the statistics of the batch, False for the running statistics.
    """
    if kind == "none":
        return x
    if kind == "layer":
        mean = x.mean((1, 2, 3), keepdim=True)
        variance = (x - mean).square().mean((1, 2, 3), keepdim=True)
    elif training:
        mean = x.mean((0, 2, 3), keepdim=True)
        variance = (x - mean).square().mean((0, 2, 3), keepdim=True)
    else:
        mean, variance = (p[k][:, None, None] for k in ("running_mean", "running_var"))
    return (x - mean) / torch.sqrt(variance + 1e-5) * p["weight"][:, None, None] + p["bias"][:, None, None]


def residual_block(p: dict, x: Tensor, kind: str, training: bool, stride: int, config: dict) -> Tensor:
    mixing = config["mixing"]
    r = F.relu(norm(sub(p, "norm1"), mixed_conv(sub(p, "conv1"), x, stride, mixing), kind, training))
    r = norm(sub(p, "norm2"), mixed_conv(sub(p, "conv2"), r, 1, mixing), kind, training)
    if config["use_cbam"]:
        r = cbam(sub(p, "cbam"), r)
    if config["use_resblocks"]:
        s = F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False) if stride == 2 else x
        if "shortcut.weight" in p:
            s = F.conv2d(s, p["shortcut.weight"], p["shortcut.bias"])
        r = r + s
    return F.relu(r) if config["block_activation"] else r


def conv_gru(p: dict, x: Tensor) -> Tensor:
    """Return all states of a ConvGRU that starts from zero, (B, T, C, H, W) -> (B, T, channels, H, W).

    The update is h <- (1 - z) h + z n.
    """
    channels = p["candidate.weight"].shape[0]
    h = x.new_zeros((x.shape[0], channels, *x.shape[3:]))
    states = []
    for x_t in x.unbind(1):
        both = F.conv2d(torch.cat([x_t, h], 1), p["gates.weight"], p["gates.bias"], padding=1)
        z, r = torch.sigmoid(both[:, :channels]), torch.sigmoid(both[:, channels:])
        n = F.conv2d(torch.cat([x_t, r * h], 1), p["candidate.weight"], p["candidate.bias"], padding=1)
        h = (1 - z) * h + z * torch.tanh(n)
        states.append(h)
    return torch.stack(states, 1)


def shuffle2(x: Tensor) -> Tensor:
    """Shuffle pixels by 2, (B, 4C, H, W) -> (B, C, 2H, 2W), with channel order c*4 + 2*i + j."""
    b, c, h, w = x.shape
    return x.view(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, c // 4, 2 * h, 2 * w)


def generator(p: dict, config: dict, x: Tensor, noise: Tensor | None = None, training: bool = False) -> Tensor:
    """Compute the output of the generator without the interpolated residual.

    Args:
        p: parameters.
        config: configuration of the HumidityGenerator.
        x: (B, T, C, h, w).
        noise: noise, or None for zero.
        training: whether batch normalisation uses the statistics of the batch.

    Returns:
        (B, T, O, s*h, s*w).
    """
    b, t = x.shape[:2]
    if config["noise"] == "concat":
        x = torch.cat([x, noise], 2)
    h = mixed_conv(sub(p, "stem"), x.flatten(0, 1), 1, config["mixing"])
    if config["stem_activation"]:
        h = F.relu(h)
    if config["noise"] != "concat" and noise is not None:
        h = h + (p["noise_std"] if config["noise"] == "learned" else config["noise_std"]) * noise.flatten(0, 1)
    h = squeeze_excitation(sub(p, "se"), h)
    for k in range(config["pre_blocks"]):
        h = residual_block(sub(p, f"pre.{k}"), h, "batch", training, 1, config)
    h = conv_gru(sub(p, "gru"), h.unflatten(0, (b, t))).flatten(0, 1)
    for k in range(config["post_blocks"]):
        h = residual_block(sub(p, f"post.{k}"), h, "batch", training, 1, config)
    steps = config["scale"].bit_length() - 1
    if config["upsampling"] == "narrow" and steps:
        h, steps = shuffle2(h), steps - 1
    for k in range(steps):
        up = sub(p, f"upsampler.convs.{k}")
        h = shuffle2(F.relu(F.conv2d(h, up["weight"], up["bias"], padding=1)))
    return F.conv2d(h, p["head.weight"], p["head.bias"]).unflatten(0, (b, t))


def critic(p: dict, config: dict, x: Tensor, coarse: Tensor | None = None, training: bool = False) -> Tensor:
    """Compute the scores of the critic, for the norms "layer", "none" and "batch".

    Args:
        p: parameters.
        config: configuration of the HumidityCritic.
        x: (B, T, C, H, W).
        coarse: coarse fields of a conditional critic.
        training: whether batch normalisation uses the statistics of the batch.

    Returns:
        (B,), or (B, T) with per_step.
    """
    b, t = x.shape[:2]
    if config["conditional"]:
        r = x.shape[3] // coarse.shape[3]
        x = torch.cat([x, coarse.repeat_interleave(r, 3).repeat_interleave(r, 4)], 2)
    h = mixed_conv(sub(p, "stem"), x.flatten(0, 1), 1, config["mixing"])
    for k in range(config["down_blocks"]):
        h = residual_block(sub(p, f"down.{k}"), h, config["norm"], training, 2, config)
    h = conv_gru(sub(p, "gru"), h.unflatten(0, (b, t))).flatten(0, 1)
    for k in range(config["post_blocks"]):
        h = residual_block(sub(p, f"post.{k}"), h, config["norm"], training, 1, config)
    score = F.linear(h.mean((2, 3)), p["linear.weight"], p["linear.bias"]).view(b, t)
    return score if config["per_step"] else score.mean(1)


def sub(p: dict, prefix: str) -> dict:
    """Return the entries below a prefix, without the prefix."""
    return {k.removeprefix(f"{prefix}."): v for k, v in p.items() if k.startswith(f"{prefix}.")}
