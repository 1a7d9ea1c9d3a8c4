"""Images in MJy/sr, as surveys publish them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deeplense import config
from deeplense.data.generate import manifest
from deeplense.errors import UserError
from deeplense.sim.observe import observe_block
from deeplense.sim.world import World


def test_images_in_megajansky_per_steradian_hold_each_bands_flux_density() -> None:
    """Of a galaxy of 20 mag, one magnitude brighter in the second band, which has another zero point."""
    tree = config.to_tree(config.load_recipe("model_2"))
    bands = {"F129": {"instrument": "roman_f129"}, "F158": {"instrument": "roman_f158"}}
    source = {"magnitude": 20.0, "R_sersic": 0.1, "n_sersic": 1.0, "colours": {"F129-F158": 1.0}}
    alone = {"no_sub": {"population": "none"}}
    tree["simulation"] |= {"size": 32, "bands": bands, "noise": "none", "classes": alone, "unit": "MJy/sr"}
    tree["simulation"]["source"] |= source
    tree["simulation"]["lens"] |= {"theta_E": 0.0, "mass": None, "gamma1": 0.0, "gamma2": 0.0}  # no lens
    w = World(config.load_recipe(tree).simulation)
    janskys = observe_block(w, 0, "test", 0, 1).images.double().sum((2, 3))[0] * 1e6 * (0.11 / 206264.806) ** 2
    np.testing.assert_allclose(janskys, [3631e-8, 3631e-8 * 10**0.4], rtol=1e-2)
    said = config.load_recipe({"simulation": {"unit": "MJy/sr"}})
    assert manifest(said, w, []).image.unit == "MJy/sr"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"noise": "triple"}, "counts electrons"),
        ({"scale_to_max": True}, "has no unit"),
        ({"instrument": "gaussian_toy"}, "no zero point"),
    ],
)
def test_a_unit_that_cannot_be_is_refused(change: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=f"simulation.unit: .*{match}"):
        World(config.load_recipe({"base": "model_2", "simulation": {"unit": "MJy/sr"} | change}).simulation)
