#!/usr/bin/env bash
# Builds the wheel and looks into it: configurations, weights and the type marker have to be inside, and the
# installed command has to find them. The packages already installed here are used; only ours is taken from the wheel.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$folder" .
"$PYTHON" -m pip install --quiet --disable-pip-version-check --no-deps --target "$folder/site" "$folder"/*.whl
cd "$folder"
for file in py.typed configs/gan/digits.yaml metrics/weights/lenet5_mnist.safetensors; do
  test -f "site/lightning_gen/$file" || { echo "the wheel lacks $file" >&2; exit 1; }
done
PYTHONPATH="$folder/site" "$PYTHON" -c "import lightning_gen, sys; assert lightning_gen.__file__.startswith(sys.argv[1]), lightning_gen.__file__" "$folder"
PYTHONPATH="$folder/site" "$PYTHON" -m lightning_gen list gan
PYTHONPATH="$folder/site" "$PYTHON" -m lightning_gen fit -c gan/digits --trainer.fast_dev_run 2 --trainer.enable_progress_bar false
echo "the wheel is whole"
