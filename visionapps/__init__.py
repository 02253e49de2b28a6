"""visionapps: detection and segmentation on aerial imagery. Importing it imports nothing heavy."""

__version__ = "0.1.0"
