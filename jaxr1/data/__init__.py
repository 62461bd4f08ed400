"""Data sets: readers of files, and built-in ones. They know nothing of models."""

from jaxr1.data.arithmetic import Arithmetic
from jaxr1.data.curriculum import EasyToHard, TargetRate
from jaxr1.data.example import DataError, Dataset, DataSource, Example
from jaxr1.data.files import Files
from jaxr1.data.mixture import Mixture, Part
from jaxr1.data.rated import Rated
from jaxr1.data.sat import Sat
from jaxr1.data.spatial import Spatial

Source = Arithmetic | Spatial | Files | Sat | Rated | Mixture | EasyToHard | TargetRate | DataSource
"""What may stand as the data of a stage or an evaluation.

A user's own class needs only `load()`.
"""

__all__ = [
    "Arithmetic",
    "DataError",
    "DataSource",
    "Dataset",
    "EasyToHard",
    "Example",
    "Files",
    "Mixture",
    "Part",
    "Rated",
    "Sat",
    "Source",
    "Spatial",
    "TargetRate",
]
