"""Other libraries' files in and out: diffusers and Hugging Face folders."""
