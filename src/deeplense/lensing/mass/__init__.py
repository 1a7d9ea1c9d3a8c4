"""Deflectors: reduced deflection angles α(x, y) [arcsec] of mass profiles.

To add a profile: write a function `(x, y, **parameters) -> (alpha_x, alpha_y)` in pure torch (of a circular one
`(r², **parameters) -> α/r`), and its potential of the same arguments, in one file; add one line to `MASS`, one row to
the oracle table in `tests/lensing/test_mass.py`, and one line to `MASS` in `sim/reference.py`, which renders it with
lenstronomy. Without a potential all works but maps of the potential and of time delays, which are refused.
Coordinates and parameters broadcast, so `x` may be a row and `y` a column of pixels.
Angles are in arcsec, y up, x right; α is reduced, κ = ½∇·α. Value and gradient stay finite at the centre, where the
ray shooter passes the smallest positive number as r².
"""

from __future__ import annotations

from deeplense.lensing.mass.cored import cnfw, cnfw_potential, soliton, soliton_potential
from deeplense.lensing.mass.external import (
    mass_sheet,
    mass_sheet_potential,
    shear,
    shear_potential,
    square_sheet,
    square_sheet_potential,
)
from deeplense.lensing.mass.isothermal import sie, sie_potential
from deeplense.lensing.mass.line import line_mass, line_mass_potential
from deeplense.lensing.mass.multipole import multipole, multipole_potential
from deeplense.lensing.mass.nfw import ctnfw, ctnfw_potential, nfw, nfw_potential, tnfw, tnfw_potential
from deeplense.lensing.mass.point import plummer, plummer_potential, point_mass, point_mass_potential
from deeplense.lensing.mass.power_law import epl, epl_potential
from deeplense.lensing.mass.profile import Deflection, MassProfile
from deeplense.lensing.mass.wave import plane_wave, plane_wave_potential

__all__ = ["MASS", "Deflection", "MassProfile"]

MASS: dict[str, MassProfile] = {
    "sie": MassProfile(sie, ("theta_E",), potential=sie_potential),
    "epl": MassProfile(epl, ("theta_E",), potential=epl_potential),
    "multipole": MassProfile(multipole, ("a_m",), potential=multipole_potential),
    "shear": MassProfile(shear, ("gamma1", "gamma2"), potential=shear_potential),
    "mass_sheet": MassProfile(mass_sheet, ("kappa",), potential=mass_sheet_potential),
    "square_sheet": MassProfile(square_sheet, ("kappa",), potential=square_sheet_potential),
    "plane_wave": MassProfile(plane_wave, ("kappa",), summed=True, potential=plane_wave_potential),
    "point_mass": MassProfile(point_mass, ("theta_E2",), circular=True, potential=point_mass_potential),
    "plummer": MassProfile(plummer, ("theta_E2",), circular=True, potential=plummer_potential),
    "line_mass": MassProfile(line_mass, ("theta_E2",), potential=line_mass_potential),
    "nfw": MassProfile(nfw, ("alpha_Rs",), circular=True, potential=nfw_potential),
    "tnfw": MassProfile(tnfw, ("alpha_Rs",), circular=True, potential=tnfw_potential),
    "ctnfw": MassProfile(ctnfw, ("alpha_Rs",), circular=True, potential=ctnfw_potential),
    "cnfw": MassProfile(cnfw, ("alpha_Rs",), circular=True, potential=cnfw_potential),
    "soliton": MassProfile(soliton, ("kappa_0",), circular=True, potential=soliton_potential),
}
