"""visionapps: segmentation of aerial imagery. Importing it imports nothing heavy."""

__version__ = "0.1.0"
