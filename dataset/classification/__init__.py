"""Image classification: datasets of whole images with one class each."""
