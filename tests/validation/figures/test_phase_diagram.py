"""The picture of the phase diagram."""

import numpy as np

from theory import Region
from validation.figures.phase_diagram import filled, to_dataset


def test_regions_are_filled_between_the_boundaries(linear_diagram):
    """The region on the fine grid is that of rho < c or rho > c, to a cell."""
    fine, across, number, share = filled(to_dataset(*linear_diagram))
    far = np.abs(fine - across[:, None]) > 2 * (fine[1] - fine[0])
    expected = np.where(fine < across[:, None], Region.hurts, Region.helps)
    inside = far & (across[:, None] > linear_diagram[0].alignment[1])
    np.testing.assert_array_equal(number[inside], expected[inside])
    assert np.all((share > 0) & (share <= 1))
