"""Data sets: readers of files, and built-in ones. They know nothing of models."""

from jaxr1.data.arithmetic import Arithmetic
from jaxr1.data.example import DataError, Dataset, Example
from jaxr1.data.readers import Files, Sat
from jaxr1.data.spatial import Spatial

__all__ = ["Arithmetic", "DataError", "Dataset", "Example", "Files", "Sat", "Spatial"]
