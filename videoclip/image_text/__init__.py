"""Pictures with captions or labels: the CLIP underneath, pre-trained, probed and zero-shot."""
