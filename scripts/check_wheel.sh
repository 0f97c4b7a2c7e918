#!/usr/bin/env bash
# Builds the wheel, installs it with what it asks for into an empty environment, and runs the main job there,
# shortened: what the package forgot to bring along or to ask for shows here.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$folder" .
"$PYTHON" -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check "$folder"/*.whl
cd "$folder"
run=runs/gan/digits
env/bin/lightning-gen list gan
env/bin/lightning-gen fit -c gan/digits --trainer.max_steps 50 --trainer.enable_model_summary false
env/bin/lightning-gen sample --ckpt_path "$run" --n 10 --seed 0 --cond each --format grid --out grid.png
env/bin/lightning-gen evaluate --ckpt_path "$run" --data digits --metrics fd-lenet5 --n 200 --out scores.json
test -s grid.png -a -s scores.json -a -f "$run/checkpoints/last.ckpt"
test -f "$(env/bin/python -c 'import lightning_gen, pathlib; print(pathlib.Path(lightning_gen.__file__).parent)')/py.typed"
echo "the wheel is whole"
