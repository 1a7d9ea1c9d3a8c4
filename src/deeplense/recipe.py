"""What a recipe may say: typed dataclasses, one per section of the YAML file.

Nothing here computes. `deeplense.config` turns YAML into a `Recipe` and back, and the layer that owns a section
checks what only it can know (that a prior is not reversed, that a network exists). Every number has its range beside
it, which `deeplense.typed` checks.

A *prior* is a number (a constant) or a one-key mapping such as `{uniform: [a, b]}`; see `deeplense.sim.priors`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

Prior = float | dict[str, Any]


class Range(NamedTuple):
    """Where a number may lie, or a prior that is one: `ends` are its brackets, "[)" without the upper end."""

    low: float
    high: float
    ends: str = "[]"

    def holds(self, x: float) -> bool:
        above = self.low < x or (self.ends[0] == "[" and self.low == x)
        return above and (x < self.high or (self.ends[1] == "]" and self.high == x))

    def __str__(self) -> str:
        return f"{self.ends[0]}{self.low:g}, {self.high:g}{self.ends[1]}"


Count = Annotated[int, Range(1, 10**9)]
Pixels = Annotated[int, Range(1, 8192)]
Share = Annotated[float, Range(0, 1, "[)")]
Angle = Annotated[Prior, Range(-1000, 1000)]  # arcsec or rad
Unit = Annotated[Prior, Range(-1, 1)]
Ellipticity = Annotated[Prior, Range(-1, 1, "()")]
Length = Annotated[Prior, Range(0, 1000, "(]")]
Seconds = Annotated[Prior, Range(0, 1e12, "(]")]
Redshift = Annotated[Prior, Range(0, 50, "(]")]


@dataclass
class Cosmology:
    """Flat, of matter and dark energy of constant w0, the same for all images.

    `distances: luminosity` is a fault of DeepLenseSim, kept for its recipes.
    """

    H0: Annotated[float, Range(1, 1000)] = 70.0  # km/s/Mpc
    Om0: Annotated[float, Range(0, 1, "(]")] = 0.3
    w0: Annotated[float, Range(-3, -0.1)] = -1.0  # pressure over density of dark energy
    distances: Literal["angular_diameter", "luminosity"] = "angular_diameter"


@dataclass
class Lens:
    """The macro lens: a power-law ellipsoid, multipoles and external shear. Give `theta_E` [arcsec] or `mass` [Msun].

    A slope gamma of exactly 2 is an SIE. a3, a4 are the multipoles' strengths, phi3, phi4 [rad] their angles.
    """

    theta_E: Annotated[Prior, Range(0, 1000)] | None = None
    mass: Annotated[Prior, Range(0, 1e18)] | None = None
    e1: Ellipticity = 0.0
    e2: Ellipticity = 0.0
    center_x: Angle = 0.0
    center_y: Angle = 0.0
    gamma: Annotated[Prior, Range(1, 3, "()")] = 2.0
    a3: Unit = 0.0
    phi3: Angle = 0.0
    a4: Unit = 0.0
    phi4: Angle = 0.0
    gamma1: Unit = 0.0
    gamma2: Unit = 0.0


@dataclass
class Source:
    """A Sérsic galaxy, smooth or with clumps, or an image of one. Give `amplitude` or `magnitude` (AB), not both.

    `amplitude` is the brightness at R_sersic [counts/s/arcsec^2]; of an image, the total flux [counts/s]. Where there
    are several bands, both are of the first, and `colours` give the others.
    """

    amplitude: Annotated[Prior, Range(0, 1e12)] | None = None
    magnitude: Annotated[Prior, Range(-100, 100)] | None = None
    R_sersic: Length = 0.25
    n_sersic: Annotated[Prior, Range(0, 20, "(]")] = 1.0
    e1: Ellipticity = 0.0
    e2: Ellipticity = 0.0
    center_x: Angle = 0.0
    center_y: Angle = 0.0
    clumps: Annotated[Prior, Range(0, 1000)] = 0.0  # how many, rounded
    clump_flux: Annotated[Prior, Range(0, 1)] = 0.3  # their share of the galaxy's flux
    clump_size: Annotated[Prior, Range(0, 10, "(]")] = 0.1  # their R_sersic over the galaxy's
    images: str | None = None  # a folder or file of galaxy images, drawn in place of the profile
    image_width: Length = 2.0  # arcsec, an image's longer side
    # the images' channel of each band, from 0; in their order when not given
    image_channels: list[Annotated[int, Range(0, 100)]] | None = None
    share_images: bool = False  # with the other splits; a fault of DeepLenseSim, Model IV
    # {g-r: prior}: magnitude in g less that in r, of bands that follow one another; 0 when not given, but an image with
    # a channel for each band has the colours of its pixels when none is given
    colours: dict[str, Annotated[Prior, Range(-100, 100)]] | None = None


@dataclass
class Quasar:
    """A point of light at the source's centre, seen in every image that the lens makes of it. Give `amplitude`
    [counts/s] or `magnitude` (AB), of the quasar itself, not of its images; alike in all bands.
    """

    amplitude: Annotated[Prior, Range(0, 1e12)] | None = None
    magnitude: Annotated[Prior, Range(-100, 100)] | None = None


@dataclass
class CosmicRays:
    """Tracks that no rejection has found."""

    rate: Annotated[float, Range(0, 1e4, "[)")] = 1.0  # mean number in an image
    length: Annotated[Prior, Range(0, 1000)] = field(default_factory=lambda: {"log_uniform": [1.0, 30.0]})  # pixels
    # electrons, of a whole track
    flux: Annotated[Prior, Range(0, 1e12)] = field(default_factory=lambda: {"log_uniform": [300.0, 30000.0]})


@dataclass
class Selection:
    """Which of the lenses drawn are kept, as a search would find them (after Collett 2015); the others are drawn again.

    Decided on the macro lens and a smooth source, before there is any substructure, so alike in all classes. The arc
    must lie within the field.
    """

    images: Annotated[int, Range(0, 4)] = 2  # of the source's centre, at least
    signal_to_noise: Annotated[float, Range(0, 1e6)] = 20.0  # of the whole arc in the first band, at least
    magnification: Annotated[float, Range(0, 1000)] = 0.0  # at least
    theta_E: Annotated[float, Range(0, 1000)] = 0.0  # arcsec, at least
    # of the lens in the first band, at most: how faint the survey of its candidates goes
    lens_magnitude: Annotated[float, Range(-100, 100)] | None = None


@dataclass
class Band:
    """A channel of the images; what it leaves out is as in the simulation."""

    instrument: str | None = None
    exposure_time: Seconds | None = None  # s
    psf: dict[str, Any] | None = None


@dataclass
class Simulation:
    """A world: priors over lenses, sources, substructure, and an instrument."""

    size: Annotated[int, Range(8, 8192)] = 64  # pixels a side
    instrument: str = "euclid_vis"  # a key of deeplense.sim.instrument.INSTRUMENTS
    # band -> {instrument, exposure_time, psf}, from blue to red: the images' channels; one, of `instrument`, when not
    # given. Lens and source are the same in all bands, but for the colours of their light
    bands: dict[str, dict[str, Any]] = field(default_factory=dict)
    pixel_scale: Annotated[float, Range(0, 100, "(]")] | None = None  # arcsec; the instrument's when not given
    exposure_time: Seconds | None = None  # s; the instrument's total when not given
    # rays a pixel's side; adaptive: one where light is smooth, three or nine where the noise would show the difference
    supersampling: Annotated[int, Range(1, 9)] | Literal["adaptive"] = "adaptive"
    # {gaussian: fwhm}, {moffat: [fwhm, beta]} (arcsec) or {kernels: folder}; the instrument's Gaussian when not given
    psf: dict[str, Any] | None = None
    noise: Literal["once", "none", "doubled", "triple"] = "once"
    unit: Literal["electron/s", "MJy/sr"] = "electron/s"  # of the images
    scale_to_max: bool = False  # clip at 0, divide by the brightest pixel; a fault of DeepLenseSim, Model IV
    # pixels over which the background's noise is alike, as after drizzling; about 0.7 where it halves the pixels
    correlated_noise: Annotated[float, Range(0, 10)] = 0.0
    cosmic_rays: CosmicRays | None = None
    bad_pixels: Share = 0.0  # share of the pixels that are NaN
    cosmology: Cosmology = field(default_factory=Cosmology)
    z_lens: Redshift = 0.5
    z_source: Redshift = 1.0
    # a fault of DeepLenseSim when it is not z_source
    z_source_convention: Annotated[float, Range(0, 50, "(]")] | None = None
    # {population: key of deeplense.sim.sky.SKIES, **its parameters}: lenses and sources drawn together; what it draws
    # takes the place of the priors of the same names. `field` names a patch of sky: recipes of one seed that show
    # another one show other lenses
    sky: dict[str, Any] | None = None
    selection: Selection | None = None
    lens: Lens = field(default_factory=Lens)
    source: Source = field(default_factory=Source)
    quasar: Quasar | None = None
    lens_light: Source | None = None
    lens_envelope: Source | None = None  # a second, outer component of the lens light
    lens_light_residual: Unit | None = None  # share that its subtraction leaves, of either sign; not subtracted: null
    match_mass: bool = False  # theta_E is that of macro lens and substructure together, so no class weighs more
    mesh: bool = False  # halos share a mass grid, hundredths of the noise from their exact sum; see lensing/mesh.py
    compile: bool = False  # loops over halos are fused by torch.compile: worth it for 10,000 images or more
    # class name -> {population: key of deeplense.sim.substructure.POPULATIONS, **its parameters}; `lens`: what of the
    # macro lens is other in this class, which gives it away: a fault of DeepLenseSim, Model IV
    classes: dict[str, dict[str, Any]] = field(default_factory=lambda: {"no_sub": {"population": "none"}})


@dataclass
class Task:
    """What is learned: the class, or parameters of the dataset. Images without any of the truths are left out."""

    kind: Literal["classify", "regress"] = "classify"
    target: str | None = None  # regress: a parameter's name, e.g. log10_m_axion, or several, as "theta_E,z_lens"
    # in place of both: name -> {kind: classify | regress or a key of deeplense.models.heads.HEADS, targets: [...],
    # weight: of the loss, 1}; the heads share one trunk
    heads: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass
class Preprocess:
    """From raw pixels to the network's input; fitted on the training split alone."""

    crop: Pixels | None = None  # centre crop, pixels
    size: Pixels | Literal["auto"] | None = None  # resize by area, pixels; auto: only where the network wants it
    subtract: Literal["none", "radial"] = "none"  # radial: the mean of each ring about the centre, as a lens galaxy has
    stretch: Literal["asinh", "log", "sqrt", "power", "none"] = "asinh"
    # of the stretch, in image units; the training images' noise when not given; per_image: each image's own noise
    scale: Annotated[float, Range(0, 1e30, "(]")] | Literal["per_image"] | None = None
    normalise: Literal["per_set", "per_image", "min_max", "none"] = "per_set"


@dataclass
class Augment:
    """Random symmetries of the training images; positions, angles and ellipticities move with them."""

    d4: bool = True  # the eight exact symmetries of the square
    cycle: bool = False  # each image shows its eight faces in turn, epoch by epoch, in place of one at random
    # largest shift, pixels, interpolated; a source's place is then known but for shear times shift
    shift: Annotated[float, Range(0, 8192)] = 0.0
    rotate: Annotated[float, Range(0, 360)] = 0.0  # largest rotation, degrees
    scalars: list[str] = field(default_factory=list)  # parameters of imported data that no symmetry changes
    # of the raw images, before the pre-processing; each drawn between 0 and the largest given
    noise: Annotated[float, Range(0, 100)] = 0.0  # more of it, in units of the image's own
    blur: Annotated[float, Range(0, 20)] = 0.0  # by a Gaussian of that standard deviation, pixels; noise as well
    gradient: Annotated[float, Range(0, 1000)] = 0.0  # of the background, at the border, in units of the noise
    cosmic_rays: Annotated[float, Range(0, 100)] = 0.0  # mean number of tracks
    mask: Share = 0.0  # share of the image that a rectangle hides


@dataclass
class Model:
    """A key of deeplense.models.MODELS, any timm name, or `my_package.module:Class`."""

    name: str = "compact"
    dropout: Share = 0.0
    drop_path: Share = 0.0
    # 1 keeps the resolution of small images in networks that would halve it
    # auto: 1 where the last map would be tiny; of a transformer, smaller patches instead
    stem_stride: Annotated[int, Range(1, 2)] | Literal["auto"] | None = None
    pretrained: bool = False
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class Training:
    """How to train."""

    epochs: Annotated[int, Range(1, 100_000)] = 12
    batch_size: Annotated[int, Range(2, 65536)] = 64
    steps_per_epoch: Count = 100  # only when data come straight from the simulator
    val_images: Count = 512  # likewise
    # likewise: epochs that show the same scenes with new noise, where the simulator is slower than the network
    reuse: Annotated[int, Range(1, 1000)] = 1
    objective: Literal["supervised"] = "supervised"
    # name -> dataset or sim: what the objective wants beside --data
    sources: dict[str, str] = field(default_factory=dict)
    init: str | None = None  # a bundle whose weights to start from
    freeze: Literal["none", "trunk"] = "none"  # what keeps the weights of `init`
    trunk_lr: Annotated[float, Range(0, 1000)] = 1.0  # the trunk's learning rate over that of the heads
    balance: Literal["none", "weights", "sampler"] = "none"  # of classes: weighed in the loss, or shown equally often
    optimizer: str = "adamw"  # adamw, sgd, or any of timm.optim: lamb, muon, lion, adopt, ...
    sam: Annotated[float, Range(0, 10)] = 0.0  # radius of sharpness-aware steps, which cost two passes; 0: off
    accumulate: Annotated[int, Range(1, 10_000)] = 1  # batches of a step
    lr: Annotated[float, Range(0, math.inf, "()")] = 1e-3
    weight_decay: Annotated[float, Range(0, 1000)] = 0.05
    momentum: Share = 0.9
    schedule: Literal["constant", "one_cycle", "cyclic", "cosine_restarts", "plateau", "warmup_stable_decay"] = (
        "one_cycle"
    )
    warmup: Share = 0.1  # share of the steps
    decay: Share = 0.2  # of warmup_stable_decay: share of the steps, at the end
    cycle_epochs: Annotated[int, Range(1, 100_000)] = 4  # of cyclic and cosine_restarts
    label_smoothing: Share = 0.0
    # images mixed in pairs, and their losses; the share is drawn from Beta(a, a)
    mixup: Annotated[float, Range(0, 100)] = 0.0
    cutmix: Annotated[float, Range(0, 100)] = 0.0  # by rectangles
    ema_decay: Share = 0.0  # of the averaged weights, which rises to it from 0; 0: off
    swa: Share = 0.0  # in place of it, the plain mean of the weights over this share of the steps, at the end
    clip_norm: Annotated[float, Range(0, 1e9)] = 1.0  # 0: off
    precision: Literal["auto", "32", "bf16"] = "auto"
    patience: Annotated[int, Range(0, 100_000)] = 0  # epochs without a better validation loss before stopping; 0: never
    calibrate: bool = True  # one temperature, fitted on the validation split
    compile: bool = False


@dataclass
class Tuning:
    """Search space: dotted recipe path -> {float|log|int: [low, high]} or {choice: [...]}."""

    space: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    sampler: Literal["tpe", "cmaes", "random"] = "tpe"
    pruner: Literal["median", "hyperband", "none"] = "median"
    trials: Annotated[int, Range(1, 1_000_000)] = 20


@dataclass
class Recipe:
    """Everything that defines an experiment."""

    name: str = "unnamed"
    description: str = ""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    splits: dict[str, Count] = field(default_factory=lambda: {"train": 900, "val": 300, "test": 300})
    simulation: Simulation = field(default_factory=Simulation)
    task: Task = field(default_factory=Task)
    preprocess: Preprocess = field(default_factory=Preprocess)
    augment: Augment = field(default_factory=Augment)
    model: Model = field(default_factory=Model)
    training: Training = field(default_factory=Training)
    tuning: Tuning = field(default_factory=Tuning)
