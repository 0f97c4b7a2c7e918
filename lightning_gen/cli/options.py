"""The options of `sample`, `evaluate`, `convert`, `shards` and `latents`, read before torch is loaded."""

import argparse
from typing import Any, NoReturn

import yaml

from lightning_gen.cli.failures import UsageError
from lightning_gen.errors import did_you_mean, nearest

FORMATS = ("diffusers", "edm", "ema", "prior")
PRIORS = ("mixture", "flow")


class Parser(argparse.ArgumentParser):
    """An argument parser that raises instead of leaving the process."""

    def __init__(self, command: str) -> None:
        super().__init__(prog=f"lightning-gen {command}", add_help=False, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise a UsageError."""
        end = "" if message.endswith("?") else "."
        raise UsageError(f"{message}{end} `{self.prog} --help` shows the options.")

    def parse_all(self, args: list[str]) -> argparse.Namespace:
        """Read the options; one that there is not is an error, which names the nearest."""
        options, rest = self.parse_known_args(args)
        if rest:
            close = nearest(rest[0].partition("=")[0], self.flags(), n=1)
            self.error(f"'{rest[0]}' is not understood.{f' Did you mean {close[0]}?' if close else ''}")
        return options

    def flags(self) -> list[str]:
        """Return all options."""
        return [flag for action in self._actions for flag in action.option_strings]


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"a number of 1 or more is needed, given was {text}")
    return value


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"a seed is 0 or more, given was {text}")
    return value


def _megabytes(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"a number above 0 is needed, given was {text}")
    return value


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"a number from 0 to below 1 is needed, given was {text}")
    return value


_positive.__name__, _seed.__name__ = "whole number", "whole number"
_megabytes.__name__, _fraction.__name__ = "number", "number"


def _common(parser: Parser, n: int | None) -> None:
    parser.add_argument("--ckpt_path")
    parser.add_argument("--n", type=_positive, default=n)
    parser.add_argument("--seed", type=_seed, default=0)
    parser.add_argument("--weights")
    parser.add_argument("--batch_size", type=_positive, default=64)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    parser.add_argument("--out")
    parser.add_argument("--import", dest="imports", action="append", default=[], metavar="MODULE")


def parse_sample(args: list[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Read the options of `sample`; those it does not know are options of the model's own."""
    parser = Parser("sample")
    _common(parser, 64)
    parser.add_argument("--format", choices=("png", "npz", "grid"))
    parser.add_argument("--cond")
    options, rest = parser.parse_known_args(args)
    if options.ckpt_path is None:
        raise UsageError("--ckpt_path says what to sample from: a checkpoint or a run folder.")
    return options, _own_options(parser, rest)


def parse_evaluate(args: list[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Read the options of `evaluate`; those it does not know are options of the model's own."""
    parser = Parser("evaluate")
    _common(parser, None)
    for flag in ("--samples", "--data", "--data_root", "--metrics", "--weights_path"):
        parser.add_argument(flag)
    parser.add_argument("--data_size", type=_positive)
    parser.add_argument("--split", choices=("train", "val", "test"), default="test")
    options, rest = parser.parse_known_args(args)
    if (options.ckpt_path is None) == (options.samples is None):
        raise UsageError("Give what is to be scored: either --ckpt_path (a model) or --samples (a folder or an npz).")
    if options.samples is not None and options.data is None:
        raise UsageError("--samples are compared with --data: a data set by name, or a folder of images.")
    own = _own_options(parser, rest)
    if own and options.ckpt_path is None:
        raise UsageError(f"--{next(iter(own))} is an option of a model, and --samples are files.")
    return options, own


def parse_convert(args: list[str]) -> argparse.Namespace:
    """Read the options of `convert`."""
    parser = Parser("convert")
    parser.add_argument("--from", dest="source", nargs=2, metavar=("FORMAT", "PATH"))
    parser.add_argument("--to", dest="target", choices=("diffusers",))
    for flag in ("--ckpt_path", "--weights", "--out"):
        parser.add_argument(flag)
    parser.add_argument("--sigma_rel", type=float)
    parser.add_argument("--images", type=_positive)
    parser.add_argument("--prior", choices=PRIORS)
    for flag in ("--nearest", "--null_class"):
        parser.add_argument(flag, action="store_true")
    options = parser.parse_all(args)
    if (options.source is None) == (options.target is None):
        raise UsageError("Give what is to be converted: either --from FORMAT PATH, or --to FORMAT with --ckpt_path.")
    if options.source is not None and options.source[0] not in FORMATS:
        raise UsageError(
            f"--from takes one of {', '.join(FORMATS)} and a path; given was '{options.source[0]}'."
            f"{did_you_mean(options.source[0], FORMATS)}"
        )
    if (options.ckpt_path is None) != (options.target is None):
        raise UsageError("--ckpt_path names what goes --to another format, and only that.")
    if options.weights is not None and options.target is None:
        raise UsageError("--weights says which weights go --to another format.")
    if options.null_class and (options.source is None or options.source[0] != "diffusers"):
        raise UsageError("--null_class is about a U-Net --from diffusers.")
    averages = options.source is not None and options.source[0] == "ema"
    if averages and options.sigma_rel is None:
        raise UsageError("--sigma_rel says how wide the average shall be, such as 0.1.")
    fitted = options.source is not None and options.source[0] == "prior"
    if not averages and options.sigma_rel is not None:
        raise UsageError("--sigma_rel is about averages, --from ema.")
    if not averages and not fitted and options.images is not None:
        raise UsageError("--images is about averages, --from ema, and priors, --from prior.")
    if not fitted and options.prior is not None:
        raise UsageError("--prior says what is fitted to the latents of a VAE, --from prior RUN.")
    if options.out is None:
        raise UsageError("--out says where to write: a checkpoint (model.ckpt), or a new folder for diffusers.")
    return options


def parse_shards(args: list[str]) -> argparse.Namespace:
    """Read the options of `shards`."""
    parser = Parser("shards")
    parser.add_argument("source", nargs="?")
    parser.add_argument("out", nargs="?")
    parser.add_argument("--size", type=_positive)
    parser.add_argument("--resize", choices=("crop", "stretch", "pad"), default="crop")
    parser.add_argument("--filter", choices=("bicubic", "lanczos", "box"), default="bicubic")
    parser.add_argument("--channels", type=int, choices=(1, 3))
    parser.add_argument("--no_labels", action="store_true")
    parser.add_argument("--val_fraction", type=_fraction, default=0.1)
    parser.add_argument("--test_fraction", type=_fraction, default=0.1)
    parser.add_argument("--on_error", choices=("raise", "skip"), default="raise")
    parser.add_argument("--shard_mb", type=_megabytes, default=64.0)
    parser.add_argument("--jpeg_quality", type=_positive)
    parser.add_argument("--seed", type=_seed, default=0)
    parser.add_argument("--name")
    options = parser.parse_all(args)
    if options.source is None or options.out is None:
        raise UsageError(
            "Give a folder or .zip file of images, and a new folder for the shards: lightning-gen shards"
            " FOLDER_OR_ZIP OUT."
        )
    return options


def parse_latents(args: list[str]) -> argparse.Namespace:
    """Read the options of `latents`."""
    parser = Parser("latents")
    for name in ("codec", "data", "out"):
        parser.add_argument(name, nargs="?")
    for flag in ("--data_root", "--weights"):
        parser.add_argument(flag)
    parser.add_argument("--data_size", type=_positive)
    parser.add_argument("--batch_size", type=_positive, default=64)
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32")
    parser.add_argument("--flip", action="store_true")
    parser.add_argument("--on_error", choices=("raise", "skip"))
    parser.add_argument("--shard_mb", type=_megabytes, default=64.0)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    options = parser.parse_all(args)
    if options.out is None:
        raise UsageError(
            "Give a codec (a checkpoint or run folder of an autoencoder), a data set by name or path, and a new folder"
            " for the latents: lightning-gen latents CODEC DATA OUT."
        )
    return options


def _own_options(parser: Parser, rest: list[str]) -> dict[str, Any]:
    """Read `--key value` and `--key=value`; a key that is nearly one of the command's is taken for a slip."""
    own: dict[str, Any] = {}
    words = iter(rest)
    for word in words:
        if not word.startswith("--"):
            parser.error(f"'{word}' is not understood: options are given as --key VALUE")
        key, equals, value = word[2:].partition("=")
        close = nearest(f"--{key}", parser.flags(), n=1)
        if close and _distance(close[0][2:], key) <= 2:
            parser.error(f"there is no option --{key}. Did you mean {close[0]}?")
        if not equals:
            following = next(words, None)
            if following is None:
                parser.error(f"--{key} needs a value")
            value = str(following)
        own[key.replace("-", "_")] = yaml.safe_load(value)
    return own


def _distance(a: str, b: str) -> int:
    """Count the letters to change, add or leave out."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]
