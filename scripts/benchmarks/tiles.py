"""What a large image takes to decode: in one piece and in tiles, each in a process of its own.

    python -m benchmarks.tiles tiles 2048 32 512

decodes one image of 2048 px by a KL-f8 decoder of 32 channels in tiles of 512 px, and prints the seconds and the peak
of memory above the weights as JSON.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.memory import PeakMemory
from benchmarks.timing import Options, Row, Seconds, Stopwatch, Unavailable

FACTOR = 8
WAYS = ("one piece", "tiles")


def tiled_decode(options: Options) -> list[Row]:
    """Measure both ways; the width of the decoder is a quarter of the published one's."""
    if options.device != "cpu":
        raise Unavailable("the peak of memory is that of a process on the CPU")
    side, channels, tile = options.size(2048, 64), options.size(32, 8), options.size(512, 32)
    times: dict[str, list[Seconds]] = {way: [] for way in WAYS}
    peaks: dict[str, int] = dict.fromkeys(WAYS, 0)
    for _ in range(options.repeats):
        for way in WAYS:
            told = _child(way, side, channels, tile)
            times[way].append(Seconds(told["wall"], told["cpu"]))
            peaks[way] = max(peaks[way], told["peak"])
    row = Row("tiled_decode", f"image of {side} px, {channels} channels, tiles of {tile} px", times, options.clock)
    row.compare("tiles", "one piece", "slowdown")
    row.facts = {f"peak memory above the weights, {way}": f"{peak / 2**20:,.0f} MiB" for way, peak in peaks.items()}
    row.facts["memory of the image alone"] = f"{3 * side * side * 4 / 2**20:,.0f} MiB"
    row.facts["one piece over tiles, memory"] = f"{peaks['one piece'] / max(1, peaks['tiles']):.1f} x"
    return [row]


def _child(way: str, side: int, channels: int, tile: int) -> dict[str, Any]:
    here = Path(__file__).resolve().parents[1]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-m", "benchmarks.tiles", way, str(side), str(channels), str(tile)]
    paths = [str(here), *(path for path in sys.path if path)]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def main(way: str, side: int, channels: int, tile: int) -> None:
    """Decode one image, and print what it took."""
    from lightning_gen.autoencoder.tiling import tiled
    from lightning_gen.networks.convolutional_autoencoder import ConvolutionalDecoder

    torch.manual_seed(0)
    decoder = ConvolutionalDecoder((3, side, side), channels=channels, norm_groups=min(32, channels)).eval()
    latents = torch.randn(1, decoder.in_channels, side // FACTOR, side // FACTOR)
    cut = tile // FACTOR

    def decode() -> Seconds:
        watch = Stopwatch()
        watch.start()
        if way == "tiles":
            tiled(decoder, latents, cut, cut // 4, FACTOR)
        else:
            with torch.no_grad():
                decoder(latents)
        return watch.stop()

    memory = PeakMemory("cpu")
    seconds = memory.watch(way, decode)()
    print(json.dumps(seconds._asdict() | {"peak": memory.peaks.get(way, 0)}))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
