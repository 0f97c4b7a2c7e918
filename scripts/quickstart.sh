#!/usr/bin/env bash
# The main job: trains a GAN on the scikit-learn digits, samples from it and scores it.
# Minutes on two CPU cores; nothing is downloaded but the packages. Run again, it continues where it stopped.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install quickstart
run=runs/gan/digits
"$PYTHON" -m lightning_gen fit -c gan/digits "$@"
"$PYTHON" -m lightning_gen sample --ckpt_path "$run/checkpoints/last.ckpt" --n 100 --seed 0 --cond each --format grid --out "$run/samples.png"
"$PYTHON" -m lightning_gen evaluate --ckpt_path "$run/checkpoints/last.ckpt" --data digits --split train --metrics fd-lenet5,class-accuracy --n 1000 --out "$run/results.json"
echo
echo "checkpoint:  $run/checkpoints/last.ckpt"
echo "sample grid: $run/samples.png"
echo "scores:      $run/results.json"
