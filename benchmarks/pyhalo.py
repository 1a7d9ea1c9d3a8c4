"""Populations of subhalos against those of pyHalo (Gilman et al. 2020 and later), halo by halo.

`pip install pyHalo==1.4.6 colossus mcfit`, then `python benchmarks/pyhalo.py [realisations]`. Lens at z = 0.5, source
at 1.5, Σ_sub = 0.025 kpc⁻², M_host = 10¹³ M☉, masses 10⁷-10¹⁰ M☉, halos seen within 6″ of the lens, no line of sight.
First single laws at the same arguments, then whole populations: pyHalo with the options nearest to our choices, and
with the defaults of its presets. For each quantity: its mean or median and the p of a Kolmogorov-Smirnov test. The
truncated mass is the total of the truncated NFW profile, by one formula for both.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from deeplense.lensing import cosmology, halo
from deeplense.lensing.mass.nfw import G_AT_R_S
from deeplense.sim.substructure import POPULATIONS, Host, galaxy

Array = NDArray[Any]
Z_LENS, Z_SOURCE, RADIUS = 0.5, 1.5, 6.0
SIGMA_SUB, LOG10_M_HOST, MASS, LOG10_M_HM = 0.025, 13.0, (1e7, 1e10), 8.5
COSMOLOGY = {"H0": 70.0, "Om0": 0.3, "Ob0": 0.05, "sigma8": 0.82, "ns": 0.96, "curvature": "flat"}
INNER = 1.0  # kpc, of the cylinder in which masses are compared
BINS = ((7.0, 7.5), (8.0, 8.5), (9.0, 10.0))  # log10 of mass, where concentrations and inner masses are compared
# the options of pyHalo nearest to our choices
COLD: dict[str, Any] = {
    "host_scaling_factor": 0.88,
    "redshift_scaling_factor": 1.7,
    "truncation_model_subhalos": "TRUNCATION_ROCHE_GILMAN2020",
    "subhalo_spatial_distribution": "PROJECTED_NFW",
    "r_tidal": 0.5,
}
WARM = {"mass_function_model_subhalos": "SHMF_LOVELL2020"}


def host(n: int) -> Host:
    column = np.ones((n, 1))
    distances = cosmology.distances(Z_LENS, Z_SOURCE).like(column)
    lens = 0 * column, 0 * column, RADIUS, COSMOLOGY["H0"], COSMOLOGY["Om0"]
    return Host(Z_LENS * column, Z_SOURCE * column, distances, 1.2 * column, *lens)


def ours(population: str, n: int, **options: Any) -> dict[str, Array]:
    """One row for each halo of n lenses, and the "number" of each lens."""
    lenses = host(n)
    family = POPULATIONS[population](sigma_sub=SIGMA_SUB, log10_m_host=LOG10_M_HOST, mass=list(MASS), **options)
    drawn = family.sample(np.random.default_rng(1), lenses)
    (component,) = (c for c in drawn.mass if c.profile == "tnfw")
    columns, mask = drawn.halos
    r = np.hypot(columns["x"], columns["y"])
    inside = mask & (r < RADIUS)
    kpc = float(lenses.distances.kpc_per_arcsec[0, 0])
    found = {"mass": columns["mass"], "concentration": columns["concentration"], "r": r}
    found |= {k: component.params[k].numpy() * kpc for k in ("R_s", "r_trunc")}
    found = {k: v[inside] for k, v in found.items()}
    # the distance from the host's centre follows from the truncation
    found["distance"] = 50 * (found["r_trunc"] / 1.4 / (found["mass"] / 1e7) ** (1 / 3)) ** 1.5
    return derived(found) | {"number": inside.sum(1)}


def theirs(preset: str, n: int, **options: Any) -> dict[str, Array]:
    from pyHalo.preset_models import preset_model_from_name

    np.random.seed(1)  # noqa: NPY002  pyHalo draws from the global generator
    rows, number = [], []
    for _ in range(n):
        realisation = preset_model_from_name(preset)(
            Z_LENS, Z_SOURCE, sigma_sub=SIGMA_SUB, log_m_host=LOG10_M_HOST, log_mlow=np.log10(MASS[0]),
            log_mhigh=np.log10(MASS[1]), cone_opening_angle_arcsec=2 * RADIUS, LOS_normalization=0.0,
            two_halo_contribution=False, mass_threshold_sis=None, kwargs_cosmo=COSMOLOGY, **options,
        )  # fmt: skip
        for h in realisation.halos:
            physical = h.params_physical
            scale = physical["rs"], physical["r_trunc_kpc"], physical["rhos"]
            rows.append((h.mass, h.c, np.hypot(h.x, h.y), *scale, np.nan if h.r3d is None else h.r3d))
        number.append(len(realisation.halos))
    names = ("mass", "concentration", "r", "R_s", "r_trunc", "rho_s", "distance")
    return derived(dict(zip(names, np.array(rows, dtype=float).T, strict=True))) | {"number": np.array(number)}


def derived(found: dict[str, Array]) -> dict[str, Array]:
    """With the truncation in units of the scale radius and the total mass of the truncated profile."""
    tau = found["r_trunc"] / found["R_s"]
    if "rho_s" in found:
        m_s = 4 * np.pi * found["rho_s"] * found["R_s"] ** 3
    else:
        m_s = halo.scale_mass(found["mass"], found["concentration"])
    lens = host(1).distances
    kpc = lens.kpc_per_arcsec.item()
    alpha_Rs = lens.theta_E2_per_mass.item() * m_s * G_AT_R_S / (found["R_s"] / kpc)
    shape = {"R_s": found["R_s"] / kpc, "r_trunc": found["r_trunc"] / kpc, "alpha_Rs": alpha_Rs}
    inner = halo.projected_mass("tnfw", INNER / kpc, shape, cosmology.distances(Z_LENS, Z_SOURCE))
    return found | {"tau": tau, "truncated": halo.tnfw_total_mass(m_s, tau), "inner": inner}


def row(name: str, mine: Array, other: Array, average: Any = np.median) -> str:
    p = stats.ks_2samp(mine, other).pvalue
    a, b = average(mine), average(other)
    return f"| {name} | {a:.4g} | {b:.4g} | {a / b:.3f} | {p:.2g} |"


def table(title: str, mine: Mapping[str, Array], other: Mapping[str, Array]) -> None:
    print(f"\n{title}: {len(mine['mass'])} and {len(other['mass'])} halos\n")
    print("| | ours | pyHalo | ratio | KS p |\n|---|---|---|---|---|")
    (n, a), (m, b) = ((len(f["number"]), f["number"].mean()) for f in (mine, other))
    error = (1 / (n * a) + 1 / (m * b)) ** 0.5
    print(f"| mean number of halos | {a:.1f} | {b:.1f} | {a / b:.3f} ± {a / b * error:.3f} | |")
    print(row("log10 mass (M200), mean", np.log10(mine["mass"]), np.log10(other["mass"]), np.mean))
    for low, high in BINS:
        bins = [(np.log10(f["mass"]) >= low) & (np.log10(f["mass"]) < high) for f in (mine, other)]
        where = f"M200 10^{low:g}-10^{high:g} Msun"
        c, d = (f["concentration"][k] for f, k in zip((mine, other), bins, strict=True))
        print(row(f"{where}: concentration, median", c, d))
        spread = [np.std(np.log10(v)) for v in (c, d)]
        print(f"| its scatter [dex] | {spread[0]:.3f} | {spread[1]:.3f} | {spread[0] / spread[1]:.2f} | |")
        inner = (f["inner"][k] for f, k in zip((mine, other), bins, strict=True))
        print(row(f"{where}: projected mass within {INNER:g} kpc [Msun], median", *inner))
    print(row("r_trunc [kpc], median", mine["r_trunc"], other["r_trunc"]))
    print(row("r_trunc/R_s, median", mine["tau"], other["tau"]))
    print(row("truncated mass/M200, median", *(f["truncated"] / f["mass"] for f in (mine, other))))
    total = [f["truncated"].sum() / f["mass"].sum() for f in (mine, other)]
    print(f"| the same, of all halos | {total[0]:.3f} | {total[1]:.3f} | {total[0] / total[1]:.3f} | |")
    print(row("distance on the sky [arcsec], median", mine["r"], other["r"]))
    if np.isfinite(other["distance"]).all():
        print(row("distance in space [kpc], median", mine["distance"], other["distance"]))


def laws() -> None:
    """Single laws at the same arguments."""
    from colossus.halo.concentration import concentration
    from pyHalo.Halos.concentration import ConcentrationDiemerJoyce, ConcentrationWDMPolynomial
    from pyHalo.Halos.tidal_truncation import TruncationRoche
    from pyHalo.mass_function_models import preset_mass_function_models
    from pyHalo.pyhalo import pyHalo
    from pyHalo.Rendering.subhalos import host_scaling_function

    mass, z, h = np.geomspace(1e7, 1e10, 4), np.array(Z_LENS), COSMOLOGY["H0"] / 100
    astropy = pyHalo(Z_LENS, Z_SOURCE, COSMOLOGY).astropy_cosmo  # also sets colossus's cosmology
    c = {"ours (Dutton & Macciò 2014)": galaxy.concentration(mass, z, 100 * h)}
    c |= {model: concentration(mass * h, "200c", Z_LENS, model=model) for model in ("ludlow16", "diemer19")}
    print("median c200 at z = 0.5 of 10^7, 10^8, 10^9, 10^10 Msun:")
    for name, values in c.items():
        print(f"  {name}: " + ", ".join(f"{v:.1f}" for v in values))
    cold, warm = POPULATIONS["cdm"](), POPULATIONS["wdm"]()
    particle = {"log10_m_hm": np.array([[LOG10_M_HM]])}
    family, options = preset_mass_function_models("SHMF_LOVELL2020", {})
    turn = {k: options[f"{k[0]}_wdm"] for k in ("a_mfunc_break", "b_mfunc_break", "c_mfunc_break")}
    soft = ConcentrationWDMPolynomial(
        astropy, ConcentrationDiemerJoyce, LOG10_M_HM, mc_suppression_redshift_evolution=False
    )
    number = [cold.number_density(np.array(0.025), np.array(m), z) for m in (13.5, 13.0)]
    scaling = [host_scaling_function(10**m, Z_LENS, 0.88, 1.7) for m in (13.5, 13.0)]
    truncation = TruncationRoche().truncation_radius(mass, 40.0)
    pairs = {
        "number, scaling with the host": (number[0] / number[1], scaling[0] / scaling[1]),
        "truncation radius": (galaxy.truncation(mass, np.array(40.0)), truncation),
        "warm, share that survives": (warm.survival(mass, particle)[0], family._turnover(mass, LOG10_M_HM, **turn)),
        "warm, factor on concentration": (warm.softening(mass, particle)[0], soft.suppression(mass, Z_LENS)),
    }
    for name, (mine, other) in pairs.items():
        print(f"{name}: largest relative difference {np.abs(mine / other - 1).max():.1e}")


def main(n: int) -> None:
    laws()
    c_host = float(galaxy.concentration(np.array(10.0**LOG10_M_HOST), np.array(Z_LENS), COSMOLOGY["H0"]))
    cold, warm = ours("cdm", n), ours("wdm", n, log10_m_hm=LOG10_M_HM)
    nearest = COLD | {"c_host": c_host}
    table("Cold, options nearest to ours", cold, theirs("CDM", n, **nearest))
    table("Cold, pyHalo's defaults", cold, theirs("CDM", n))
    title = f"Warm, m_hm = 10^{LOG10_M_HM} Msun"
    table(f"{title}, options nearest to ours", warm, theirs("WDM", n, log_mc=LOG10_M_HM, **nearest, **WARM))
    table(f"{title}, pyHalo's defaults", warm, theirs("WDM", n, log_mc=LOG10_M_HM))


if __name__ == "__main__":
    if importlib.util.find_spec("pyHalo") is None:
        sys.exit("pyHalo is not installed; pip install pyHalo==1.4.6 colossus mcfit")
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
