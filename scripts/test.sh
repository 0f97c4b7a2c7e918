#!/usr/bin/env bash
# Runs the tests. Arguments are handed to pytest: `bash scripts/test.sh -m "not slow"`.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install test
# two processes of one thread each; benchmarks and trainings are elsewhere
export OMP_NUM_THREADS=1
exec "$PYTHON" -m pytest --numprocesses "${TEST_PROCESSES:-2}" --dist loadfile "$@"
