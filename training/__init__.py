"""How the embedded pair is made: captioned scenes, a VQGAN and a CLIP trained on them. See README.md."""
