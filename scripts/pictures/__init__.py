"""The parts of scripts/diffusion_pictures.py."""
