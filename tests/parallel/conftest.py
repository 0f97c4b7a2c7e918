import sys
from pathlib import Path

# helpers of this folder and of others
for near in ("parallel", "diffusion"):
    sys.path.insert(0, str(Path(__file__).parents[1] / near))
