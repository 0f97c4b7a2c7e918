"""What the folders around image files mean: splits, classes, or nothing.

- One folder that holds everything (as in many archives) is looked through, and never a class: a single
  class tells nothing.
- Folders `train`, `val`, `test` at the top are the splits (also `training`, `valid`, `validation`,
  `testing`). Without a `val` or a `test`, the split is taken out of the training images.
- Below, two or more folders side by side are the classes, in the order of their names; folders inside
  them belong to their class. Otherwise the images have no labels.
- Without split folders, and for a split that is missing, an image belongs to the split that a hash of its
  relative name falls into: adding files never moves old ones from split to split.
"""

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lightning_gen.data.datasets import Split

_SPLIT_FOLDERS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Arrangement:
    """Files by split, in order, and their classes.

    Attributes:
        splits: names of the files of each split, sorted.
        class_names: the classes, sorted; None where the images have no labels.
        label_of: the class index of each file; empty where the images have no labels.
    """

    splits: dict[Split, list[str]]
    class_names: list[str] | None
    label_of: dict[str, int]


def arrange(
    names: Sequence[str], labels: bool = True, val_fraction: float = 0.1, test_fraction: float = 0.1
) -> Arrangement:
    """Read splits and classes from the folders of file names.

    Args:
        names: relative names with "/" between folders, sorted.
        labels: whether class folders are looked for.
        val_fraction: share of the images hashed into "val" where there is no such folder.
        test_fraction: the same of "test".

    Raises:
        ValueError: where the folders can be read in two ways; says which.
    """
    below = {name: tuple(name.split("/")) for name in names}
    depth = _depth_of_wrapper(list(below.values()))
    below = {name: parts[depth:] for name, parts in below.items()}
    folders = _has_split_folders({parts[0] if len(parts) > 1 else "" for parts in below.values()})
    given = {name: _SPLIT_FOLDERS[parts[0].lower()] for name, parts in below.items()} if folders else {}
    present = set(given.values())
    splits: dict[Split, list[str]] = {"train": [], "val": [], "test": []}
    for name in names:
        split = given.get(name, "train")
        if split == "train":
            hashed = split_by_hash(name, val_fraction, test_fraction)
            split = split if hashed in present else hashed
        splits[split].append(name)
    below = {name: parts[1:] if folders else parts for name, parts in below.items()}
    class_names, label_of = _classes(below) if labels else (None, {})
    return Arrangement(splits, class_names, label_of)


def split_by_hash(name: str, val_fraction: float, test_fraction: float) -> Split:
    """Assign a file to a split by its name alone, whichever way accents are encoded."""
    digest = hashlib.sha256(unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape")).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < val_fraction:
        return "val"
    return "test" if place < val_fraction + test_fraction else "train"


def _depth_of_wrapper(paths: list[tuple[str, ...]]) -> int:
    """Count the folders at the top that hold everything and are not a split."""
    depth = 0
    while all(len(path) > depth + 1 for path in paths):
        first = {path[depth] for path in paths}
        if len(first) > 1 or first.pop().lower() in _SPLIT_FOLDERS:
            break
        depth += 1
    return depth


def _has_split_folders(tops: set[str]) -> bool:
    """Say whether the folders at the top ("" for files beside them) are splits.

    Raises:
        ValueError: where they are partly, or where there are no training images.
    """
    splits = {top for top in tops if top.lower() in _SPLIT_FOLDERS}
    parts = [_SPLIT_FOLDERS[top.lower()] for top in splits]
    if splits == tops:
        if "train" not in parts:
            raise ValueError(
                f"There is a folder {_listed(splits)} but no folder train/. Add it, or give the path of the"
                " folder inside."
            )
        if len(set(parts)) < len(parts):
            raise ValueError(f"Two of the folders {_listed(splits)} name the same split; keep one of them.")
        return True
    if "train" in parts and len(splits) > 1:
        others = _listed(top for top in tops - splits if top)
        beside = f"the folders {others}" if others else "image files"
        raise ValueError(
            f"The folders {_listed(splits)} look like splits, but {beside} lie beside them. Keep only folders"
            " train/, val/ and test/ at the top, or rename them if they are classes."
        )
    return False


def _classes(below: dict[str, tuple[str, ...]]) -> tuple[list[str] | None, dict[str, int]]:
    """Name the classes and give each file its index, from the path below the split.

    Raises:
        ValueError: where some files lie in class folders and some beside them.
    """
    loose = [name for name, parts in below.items() if len(parts) == 1]
    class_names = sorted({parts[0] for parts in below.values() if len(parts) > 1})
    if len(class_names) < 2 or len(loose) == len(below):
        return None, {}
    if loose:
        raise ValueError(
            f"{len(loose)} images lie beside the class folders {_listed(class_names)}, the first is"
            f" {loose[0]}. Move them into a class, or give labels=False to ignore the folders."
        )
    index_of = {class_name: index for index, class_name in enumerate(class_names)}
    return class_names, {name: index_of[parts[0]] for name, parts in below.items()}


def _listed(names: Iterable[str]) -> str:
    every = sorted(names)
    shown = ", ".join(f"{name}/" for name in every[:10])
    return shown + (f" and {len(every) - 10} more" if len(every) > 10 else "")
