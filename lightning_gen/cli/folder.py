"""The folder of a run: which one it is, and whether and from where a run in it continues."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from lightning_gen.checkpoints import CheckpointError, Found, checked, checkpoints_in
from lightning_gen.cli.failures import UsageError
from lightning_gen.errors import RunError

# how data are read, not which: a run may continue on another machine
_READING = ("num_workers", "pin_memory", "persistent_workers", "prefetch_factor", "root", "download", "n_predict")
# how networks are computed, the same up to rounding: another machine may have no compiler
FREE = (*_READING, "compile_network", "compile_networks")


@dataclass
class RunFolder:
    """One run's folder.

    Attributes:
        path: the folder; it need not exist yet.
        more: other folders that the configuration saves checkpoints in.
    """

    path: Path
    more: tuple[Path, ...] = ()

    @property
    def config(self) -> Path:
        """The configuration the run was started with."""
        return self.path / "config.yaml"

    def checkpoints(self) -> list[Found]:
        """The checkpoints, newest first; unreadable ones last."""
        return checkpoints_in(self.path, *self.more)

    def newest(self) -> tuple[Path, dict[str, Any], list[str]] | None:
        """Return the newest whole checkpoint, its content, and notes on damaged ones that are newer.

        Raises:
            CheckpointError: where there are checkpoints and none is whole.
        """
        found = self.checkpoints()
        notes = [one for one in found if one.error is not None]
        for one in found:
            if one.error is not None:
                continue
            try:
                content = checked(one.path)
            except CheckpointError as error:
                notes.append(Found(one.path, one.step, one.modified, str(error)))
                continue
            newer = [note for note in notes if note.modified >= one.modified]
            return one.path, content, [f"{note.error}" for note in newer]
        if notes:
            raise CheckpointError(
                f"No checkpoint of {self.path} can be read, so the run cannot continue. {notes[0].error} To begin"
                " anew, move its checkpoints away or give another folder (--trainer.default_root_dir)."
            )
        return None

    def best(self) -> Path:
        """Return the checkpoint that the newest one names as the best.

        Raises:
            UsageError: where no metric was monitored.
        """
        newest = self.newest()
        if newest is None:
            raise UsageError(self.none("best"))
        states = (newest[1].get("callbacks") or {}).values()
        for state in states:
            if isinstance(state, dict) and state.get("monitor") and state.get("best_model_path"):
                path = Path(state["best_model_path"])
                # a folder may have been moved since
                for place in (path, self.path / "checkpoints" / path.name):
                    if place.exists():
                        return place
        raise UsageError(
            f"No checkpoint of {self.path} is known as the best: a ModelCheckpoint with `monitor` decides which one"
            " is. Give the path of a checkpoint instead."
        )

    def none(self, which: str) -> str:
        """Say that there is no checkpoint."""
        return (
            f"--ckpt_path {which}: there is no checkpoint in {self.path}. Leave the option out to begin a run there,"
            " or name the folder of the run with --trainer.default_root_dir."
        )

    def resolve(self, given: str) -> Path:
        """Return the checkpoint that `--ckpt_path` stands for.

        Raises:
            UsageError: where there is none.
        """
        if given == "best":
            return self.best()
        if given == "last":
            newest = self.newest()
            if newest is None:
                raise UsageError(self.none(given))
            for note in newest[2]:
                raise RunError(f"{note} Leave --ckpt_path out to continue from the next older one, {newest[0]}.")
            return newest[0]
        return Path(given)

    def holds(self, checkpoint: Path) -> bool:
        """Whether a checkpoint is one of this run."""
        places = (self.path, *self.more)
        return any(place.resolve() in checkpoint.resolve().parents for place in places)


def folder_of(checkpoint: Path) -> Path | None:
    """Return the run folder that a checkpoint lies in, where it has a config.yaml."""
    for folder in list(checkpoint.absolute().parents)[:2]:
        if (folder / "config.yaml").is_file():
            try:
                return folder.relative_to(Path.cwd())
            except ValueError:
                return folder
    return None


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Name every leaf of nested dicts by its full key; `init_args` is left out, as people leave it out."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        path = prefix if key in ("init_args", "dict_kwargs") else f"{prefix}.{key}".lstrip(".")
        flat.update(flatten(inner, path))
    flat.pop("", None)
    return flat


def differences(old: dict[str, Any], new: dict[str, Any], sections: Iterable[str]) -> list[tuple[str, Any, Any]]:
    """List the keys of these sections whose values differ: key, old value, new value."""
    flat_old = flatten({name: old.get(name) for name in sections})
    flat_new = flatten({name: new.get(name) for name in sections})
    keys = [key for key in [*flat_old, *flat_new] if key.rpartition(".")[2] not in FREE]
    missing = "(not there)"
    return [
        (key, flat_old.get(key, missing), flat_new.get(key, missing))
        for key in dict.fromkeys(keys)
        if flat_old.get(key, missing) != flat_new.get(key, missing)
    ]


def refuse(folder: Path, changed: list[tuple[str, Any, Any]]) -> None:
    """Refuse to continue a run with another configuration.

    Raises:
        UsageError: always; lists the keys with both values.
    """
    lines = "\n".join(f"  {key}: {_shown(old)} in the run, {_shown(new)} now" for key, old, new in changed)
    raise UsageError(
        f"{folder} holds a run with another configuration, which would not continue but change:\n{lines}\n"
        "Give another folder (--trainer.default_root_dir) for a new run, or the old values to continue this one"
        f" (-c {folder}/config.yaml has them all)."
    )


def _shown(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).strip().removesuffix("\n...").strip()


def as_config(content: dict[str, Any], key: str) -> dict[str, Any] | None:
    """Return what a checkpoint says about its model or data in the form of a configuration, if it says it."""
    hyperparameters = dict(content.get(key) or {})
    class_path = hyperparameters.pop("_class_path", None)
    hyperparameters.pop("_instantiator", None)
    return {"class_path": class_path, "init_args": hyperparameters} if class_path else None


def dump(parser: ArgumentParser, config: Any, **how: Any) -> str:
    """Write a parsed configuration as YAML, defaults and nulls included."""
    # the name of the option until jsonargparse 5
    text: str = parser.dump(config, skip_none=False, **how)
    return text


def epochs_done(content: dict[str, Any]) -> int:
    """Count the epochs whose iterations are all done: a checkpoint may be saved before its epoch is closed."""
    loop = (content.get("loops") or {}).get("fit_loop") or {}
    epoch = (loop.get("epoch_progress") or {}).get("current") or {}
    batches = loop.get("epoch_loop.batch_progress") or {}
    here = batches.get("current") or {}
    if batches.get("is_last_batch") and here.get("completed") == here.get("ready"):
        return int(epoch.get("ready", 0))
    return int(epoch.get("processed", 0))
