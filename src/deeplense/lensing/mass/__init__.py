"""Deflectors: reduced deflection angles α(x, y) [arcsec] of mass profiles.

To add a profile: write a function `(x, y, **parameters) -> (alpha_x, alpha_y)` in pure torch (of a circular one
`(r², **parameters) -> α/r`), add one line to `MASS`, one row to the oracle table in `tests/lensing/test_mass.py`, and
one line to `MASS` in `sim/reference.py`, which renders it with lenstronomy.
Coordinates and parameters broadcast, so `x` may be a row and `y` a column of pixels.
Angles are in arcsec, y up, x right; α is reduced, κ = ½∇·α. Value and gradient stay finite at the centre, where the
ray shooter passes the smallest positive number as r².
"""

from __future__ import annotations

from deeplense.lensing.mass.cored import cnfw, soliton
from deeplense.lensing.mass.external import mass_sheet, shear, square_sheet
from deeplense.lensing.mass.isothermal import sie
from deeplense.lensing.mass.line import line_mass
from deeplense.lensing.mass.multipole import multipole
from deeplense.lensing.mass.nfw import ctnfw, nfw, tnfw
from deeplense.lensing.mass.point import plummer, point_mass
from deeplense.lensing.mass.power_law import epl
from deeplense.lensing.mass.profile import Deflection, MassProfile
from deeplense.lensing.mass.wave import plane_wave

__all__ = ["MASS", "Deflection", "MassProfile"]

MASS: dict[str, MassProfile] = {
    "sie": MassProfile(sie, ("theta_E",)),
    "epl": MassProfile(epl, ("theta_E",)),
    "multipole": MassProfile(multipole, ("a_m",)),
    "shear": MassProfile(shear, ("gamma1", "gamma2")),
    "mass_sheet": MassProfile(mass_sheet, ("kappa",)),
    "square_sheet": MassProfile(square_sheet, ("kappa",)),
    "plane_wave": MassProfile(plane_wave, ("kappa",), summed=True),
    "point_mass": MassProfile(point_mass, ("theta_E2",), circular=True),
    "plummer": MassProfile(plummer, ("theta_E2",), circular=True),
    "line_mass": MassProfile(line_mass, ("theta_E2",)),
    "nfw": MassProfile(nfw, ("alpha_Rs",), circular=True),
    "tnfw": MassProfile(tnfw, ("alpha_Rs",), circular=True),
    "ctnfw": MassProfile(ctnfw, ("alpha_Rs",), circular=True),
    "cnfw": MassProfile(cnfw, ("alpha_Rs",), circular=True),
    "soliton": MassProfile(soliton, ("kappa_0",), circular=True),
}
