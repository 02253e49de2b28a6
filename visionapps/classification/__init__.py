"""Whole images to classes: the model, dense and multi-crop evaluation, linear probes."""
