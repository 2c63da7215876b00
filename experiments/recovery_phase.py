"""How sparse must features be, for their compression, to be recovered: by an oracle that knows the arrangement, and by an SAE?

64 features in random arrangements of unit norm, over fewer and fewer units (compression) and with more and more features active
at once. The oracle infers the features of each sample with the true weights; TopK SAEs see the units only, k being the number
of features that are active on average. Look at whether the SAE's recovery ends where the oracle's does, at the classical
transition of compressed sensing (line), or before it: what lies between them is hidden by the SAE, not by the superposition.

Recovery is, as in toy_alignment, the highest Pearson correlation of a feature with any inferred one, or any latent, mean over
features. It falls gradually; the share of samples that the oracle recovers exactly falls steeply, and the line is about this
share, for endlessly many features and linear units: with `--config.rectified=True` it only bounds what can be had. Exact means
an error of at most 10 % of the length of the sample's features, among samples with any active. The oracle is the classical one,
which does not use that features are at most 1. A third of its penalty or four times its steps change its recovery by 0.002 at
most, and the share by 0.05; twice the SAE's steps raise its recovery by up to 0.08, most where 20 or more features are active.
"""

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

import superpos as sp
from experiments import command
from superpos import plotting
from superpos.results import Run

# What is measured at each point, and what a panel of it is called.
PANELS = {
    "oracle": "Oracle: recovery",
    "oracle_exact": "Oracle: share of samples exact",
    "sae": "SAE: recovery",
    "random_sae": "Untrained SAE: recovery",
}


def get_config() -> ConfigDict:
    """Every setting."""
    config = ConfigDict()
    config.seed = 0  # of all keys
    config.n_seeds = 3  # arrangements, each with an SAE, of every point
    config.n_features = 64
    config.n_units = (8, 16, 24, 32, 40, 48, 56, 64)
    config.n_active = (1, 2, 3, 5, 8, 13, 20, 32)  # features that are active on average, and the k of the SAEs
    config.rectified = False  # units are relu(z A) instead of z A
    config.chunk = 0  # models in flight at once; 0: as many as fit into memory
    config.oracle = ConfigDict({"penalty": 1e-3, "steps": 2000, "tolerance": 0.1, "n_samples": 1024})
    config.sae = ConfigDict({"n_latents": 64, "steps": 3000, "batch_size": 512, "learning_rate": 1e-2})
    config.eval = ConfigDict({"n_samples": 8192})  # of the SAEs
    return config


def train(config: ConfigDict, key: Any, data_key: Any, n_active: int, n_units: Any) -> dict[str, Any]:
    """What is recovered at one point: a scalar for each of `PANELS`, and the SAE's last losses."""
    n = config.n_features
    features = sp.features.SparseFeatures(n, n_active / n)
    sae = sp.sae.TopK(n, config.sae.n_latents, n_active, **sp.sae.PUBLISHED)
    arrangement_key, init_key, sae_key = jax.random.split(key, 3)
    sae_data, eval_key = jax.random.split(data_key)
    # n_units is a number, not a shape: further units are silent. So all compressions are one compiled branch.
    live = jnp.arange(n) < n_units
    arrangement = sp.arrangements.directions(jnp.where(live, sp.arrangements.gaussian(arrangement_key, n, n), 0))

    def units(z):
        return jax.nn.relu(z @ arrangement) if config.rectified else z @ arrangement

    random_sae = narrow(sae.init(init_key), live, n_units)
    trained_sae, history = sp.fit(
        sae,
        sae_key,
        lambda key, n: units(features.sample(key, n)),
        data_key=sae_data,
        params=random_sae,
        steps=config.sae.steps,
        batch_size=config.sae.batch_size,
        optimizer=optax.adam(config.sae.learning_rate),
    )
    z = features.sample(eval_key, config.eval.n_samples)
    measured = {name: recovery(sae.encode(p, units(z)), z) for name, p in (("sae", trained_sae), ("random_sae", random_sae))}
    oracle = config.oracle
    z = z[: oracle.n_samples]
    inferred = sp.sparse_coding.fista(units(z), arrangement, oracle.penalty, rectified=config.rectified, steps=oracle.steps)
    exact = jnp.linalg.norm(inferred - z, axis=1) <= oracle.tolerance * jnp.linalg.norm(z, axis=1)
    measured |= {"oracle": recovery(inferred, z), "oracle_exact": jnp.mean(exact, where=jnp.any(z > 0, axis=1))}
    return {**measured, "loss": history["loss"][-100:].mean()}


def narrow(params: Any, live: jax.Array, n_units: Any) -> Any:
    """The SAE that reads the live units only, with the initial scale of one that has no others."""
    n, n_latents = params["W_enc"].shape
    scale = jnp.sqrt((n + n_latents) / (n_units + n_latents))
    encoder, decoder = jnp.where(live[:, None], params["W_enc"], 0), jnp.where(live, params["W_dec"], 0)
    return {**params, "W_enc": scale * encoder, "W_dec": scale * decoder}


def recovery(units: jax.Array, z: jax.Array) -> jax.Array:
    """Mean over features of the highest correlation with any unit."""
    return sp.align(units, z, "feature_recovery", folds=None)["feature_recovery"].mean


def compute(config: ConfigDict, run: Run) -> dict[str, Any]:
    """Measures all points as one program, and tabulates them."""
    n = config.n_features
    for name in ("n_units", "n_active"):
        if not config[name] or not all(1 <= value <= n for value in config[name]) or len(set(config[name])) < len(config[name]):
            raise ValueError(f"config.{name} must name different numbers from 1 to n_features = {n}, got {config[name]}.")
    if config.n_seeds < 1 or config.chunk < 0:
        raise ValueError(f"config.n_seeds must be at least 1 and chunk at least 0, got {config.n_seeds} and {config.chunk}.")
    if not 2 <= config.oracle.n_samples <= config.eval.n_samples:
        raise ValueError("config.oracle.n_samples must be at least 2, and at most config.eval.n_samples.")
    init_key, data_key = jax.random.split(jax.random.key(config.seed))
    # Whatever is wrong with the settings shows here, before anything is written.
    for n_active in config.n_active:
        jax.eval_shape(lambda n_active=n_active: train(config, init_key, data_key, n_active, 8.0))
    run.claim()
    found = sp.sweep(
        partial(train, config),
        {"n_active": config.n_active, "n_units": [float(size) for size in config.n_units]},
        jax.random.split(init_key, config.n_seeds),
        data_key=data_key,
        chunk=config.chunk or None,
        workdir=run.path / "sweep",
    )
    rows = []
    for units, n_active, n_units in itertools.product(PANELS, config.n_active, config.n_units):
        at = {"n_active": n_active, "probability": n_active / n, "n_units": n_units, "compression": n_units / n}
        values = found.states[units].sel(n_active=n_active, n_units=n_units).values
        rows.append({"units": units, **at, **sp.stats.over_seeds(values)})
    return run.finish(rows, found.seconds)


def draw(results: dict[str, Any], run: Run) -> None:
    """The figure: a heat map of compression and sparsity for each of `PANELS`, with the transition drawn over it."""
    rows, config = results["rows"], run.config
    x, y = (sorted({row[name] for row in rows}) for name in ("compression", "n_active"))
    curve = np.linspace(min(x) / 2, 1, 200)
    transition = config["n_features"] * np.asarray(sp.theory.phase_transition(curve))
    figure, axes = plotting.panels(2, 2, (8.6, 7.6), sharex=True, sharey=True)
    for axis, (name, title) in zip(axes.flat, PANELS.items(), strict=True):
        means = {(row["compression"], row["n_active"]): row["mean"] for row in rows if row["units"] == name}
        image = axis.pcolormesh(
            edges(np.array(x)),
            2 ** edges(np.log2(y)),
            [[means[at, active] for at in x] for active in y],
            vmin=0,
            vmax=1,
            cmap="cividis",
        )
        limits = axis.get_xlim(), axis.get_ylim()
        for width, colour, label in ((4, "white", None), (2, "black", "phase transition of many features in linear units")):
            axis.plot(curve, transition, color=colour, linewidth=width, label=label)
        axis.set_xlim(limits[0])
        axis.set_yscale("log", base=2)
        axis.set_ylim(limits[1])
        axis.set_yticks(y, [str(active) for active in y])
        axis.set_xticks(x, [f"{at:.3g}" for at in x], fontsize=8)
        axis.minorticks_off()
        axis.set_title(title)
        axis.spines[:].set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("units / features (left: more compressed)")
    for axis in axes[:, 0]:
        axis.set_ylabel(f"features active on average, of {config['n_features']}")
    bar = figure.colorbar(image, ax=axes, shrink=0.7)
    bar.set_label("mean over features of the highest correlation (r); share of samples")
    spread = f"largest standard deviation {max(row['std'] for row in rows):.2f}"
    n_seeds = rows[0]["n_seeds"]
    caption = f"Mean over {n_seeds} random arrangements; {spread}" if n_seeds > 1 else "1 random arrangement"
    legend = axes[0, 0].get_legend_handles_labels()[0]
    plotting.finish(figure, caption + ("; rectified units" if config["rectified"] else ""), legend, path=run.figure)


def edges(centres: np.ndarray) -> np.ndarray:
    """Where the cells of a map begin and end."""
    middles = (centres[1:] + centres[:-1]) / 2
    ends = (2 * centres[[0, -1]] - middles[[0, -1]]) if len(middles) else centres[[0, 0]] + np.array([-0.05, 0.05])
    return np.concatenate([ends[:1], middles, ends[1:]])


if __name__ == "__main__":
    command.main("recovery_phase", get_config(), compute, draw)
