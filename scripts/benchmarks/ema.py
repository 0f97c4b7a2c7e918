"""Averaging weights: ours against torch's AveragedModel."""

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

from benchmarks.timing import Options, Row, alternate, timed
from lightning_gen.ema import EMA
from lightning_gen.networks import ResNetGenerator

HALF_LIFE, BATCH = 10_000, 64


def ema(options: Options) -> list[Row]:
    """Measure one update of all weights, running statistics included."""
    torch.manual_seed(0)
    network = ResNetGenerator(channels=options.size(256, 8)).to(options.device)
    decay = 0.5 ** (BATCH / HALF_LIFE)
    ours = EMA(network, HALF_LIFE, warmup=None)
    multi = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay))
    plain = AveragedModel(network, avg_fn=get_ema_avg_fn(decay))
    with torch.no_grad():
        # averages start as copies; from here on they have something to do
        for average in (multi, plain):
            average.update_parameters(network)
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
    units, warmup = options.size(100, 1), options.size(10, 1)
    lanes = {
        "AveragedModel, avg_fn": timed(lambda: plain.update_parameters(network), units, warmup, options.device),
        "AveragedModel, multi_avg_fn": timed(lambda: multi.update_parameters(network), units, warmup, options.device),
        "ours": timed(lambda: ours.update(network, BATCH, 10**6), units, warmup, options.device),
    }
    row = Row("ema", "update of all weights", alternate(lanes, options.repeats), options.clock)
    row.compare("ours", "AveragedModel, multi_avg_fn", "speedup")
    row.compare("ours", "AveragedModel, avg_fn", "speedup")
    difference = max(
        float((a - b).detach().abs().max()) for a, b in zip(ours.parameters(), multi.module.parameters(), strict=True)
    )
    row.facts = {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "largest difference from multi_avg_fn": f"{difference:.1e}",
    }
    return [row]
