"""Position tables resampled to another size, as torch does it."""

import numpy as np
import pytest

from jaxr1.models.vit import bicubic


@pytest.mark.parametrize("to", [3, 8, 13])
def test_bicubic_equals_torch(rng, to):
    import torch

    table = rng.standard_normal((8, 8, 5)).astype(np.float32)
    grid = torch.tensor(table).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(grid, size=(to, to), mode="bicubic", align_corners=False)
    ours = bicubic(8, to) @ table.reshape(64, 5)
    np.testing.assert_allclose(ours.reshape(to, to, 5), expected[0].permute(1, 2, 0).numpy(), atol=1e-5)


def test_same_size_is_the_identity():
    np.testing.assert_allclose(bicubic(6, 6), np.eye(36), atol=1e-7)
