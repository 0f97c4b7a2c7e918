"""What `Trainer.test` logs, in the run folder's results beside the scores."""

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_gen.files import written_whole
from lightning_gen.module import GenerativeModule, trying
from lightning_gen.results import environment, run_context


class HeldOutResults(Callback):
    """Write the means over the test split that a module logs (`test/...`) to `results.json`, with what they are of."""

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add them to the scores of this model, where `Fidelity` has written such."""
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        values = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("test/")}
        module = pl_module
        if trying(trainer) or not values or not trainer.is_global_zero or not isinstance(module, GenerativeModule):
            return
        data: Any = getattr(trainer, "datamodule", None)
        protocol: dict[str, Any] = {"weights": module.weights_used(), "dataset": getattr(data, "name", None)}
        if hasattr(data, "split"):
            # on several processes, the last batches of which may differ by an image
            seen = min(module.held_out_images, len(data.split("test")))
            protocol |= {"split": "test", "num_images": seen}
        if hasattr(data, "fingerprint"):
            protocol["fingerprint"] = data.fingerprint("test")[:16]
        measured = {name: how for name, how in module.held_out_protocol().items() if name in values}
        protocol |= {"measured": measured} if measured else {}
        path = folder / "results.json"
        content = _of_this_model(path, module) or {"scores": {}, **run_context(module), "environment": environment()}
        content["held_out"] = {"values": values, "protocol": protocol}
        with written_whole(path) as partial:
            partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _of_this_model(path: Path, module: GenerativeModule) -> dict[str, Any] | None:
    """Read results, unless they are of another model or of another iteration."""
    if not path.is_file():
        return None
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    context = run_context(module)
    same = all(content.get(key) == context[key] for key in ("model", "iterations"))
    return content if same else None
