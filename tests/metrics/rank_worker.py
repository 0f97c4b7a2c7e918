"""What each process of the rank tests runs, apart so that it starts quickly."""

import torch
from torch import Tensor, distributed, nn

from lightning_gen.metrics import Evaluator, Extraction, FeatureExtractor

N, REFERENCES, BATCH = 101, 77, 8


class TinyExtractor(FeatureExtractor):
    """A linear map in float32, in place of Inception."""

    name = "tiny"
    dim = 16
    weights_sha256 = "0" * 64
    resize = "none"
    image_channels = 1

    def __init__(self, pixels: int = 64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Linear(pixels, 16)
        self.last = nn.Linear(16, 10)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 4
        self.freeze()

    def forward(self, images: Tensor) -> Extraction:
        self.check(images)
        features = torch.tanh(self.first(images.flatten(1).float() / 255))
        return Extraction(features, self.last(features))


def image(index: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * seed + index)
    return torch.randint(0, 256, (1, 8, 8), generator=generator, dtype=torch.uint8)


class Images:
    """A data set of images that are functions of their index."""

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.seed = n, seed

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": image(index, self.seed), "label": torch.tensor(index % 10)}


def source(first: int, n: int) -> Tensor:
    torch.randn(7)  # a sampler that uses the global generator
    return torch.stack([image(index, seed=1) for index in range(first, first + n)])


def scores(cache: str, n: int = N) -> dict[str, tuple[float, float | None]]:
    evaluator = Evaluator(
        ["fid", "kid", "is", "fd-lenet5", "class-accuracy"],
        extractors={"inception": TinyExtractor()},
        batch_size=BATCH,
        cache=cache,
        kid_subsets=5,
        kid_subset_size=40,
    )
    evaluator.set_reference(Images(REFERENCES, 0), name="random", split="test")
    result = evaluator(source, n, labels=lambda first, count: torch.arange(first, first + count) % 10, seed=3)
    return {name: (score.value, score.std) for name, score in result.items()}


def failing(first: int, n: int) -> Tensor:
    if first == BATCH:  # the second batch: rank 1's
        raise ValueError("this sampler fails")
    return source(first, n)


def run(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/init{world}", rank=rank, world_size=world)
    try:
        made = scores(f"{folder}/cache{world}")
        few = scores(f"{folder}/cache{world}", n=12)  # fewer batches than ranks, and a cached reference
        evaluator = Evaluator(["is"], extractors={"inception": TinyExtractor()}, batch_size=BATCH)
        try:
            evaluator(failing, 40)
            message = "no error"
        except (RuntimeError, ValueError) as error:
            message = str(error)
        torch.save({"scores": made, "few": few, "message": message}, f"{folder}/{world}-{rank}.pt")
    finally:
        distributed.destroy_process_group()
