"""A view, a metric, a sparse autoencoder and a recording are each one class or function, and one line that registers it."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import superpos as sp
from experiments import align, brain_alignment, sae_sweep
from superpos import views
from superpos.metrics import registry
from superpos.metrics.base import Metric, correlations, from_units
from superpos.sae import TopK
from superpos.sae.base import Code
from superpos.sae.options import POSITIVE


@dataclasses.dataclass(frozen=True)
class BestAbsolute(Metric):
    """The highest |r| of each target unit with any source unit."""

    name: str = "best_absolute"

    def evaluate(self, fitted, evidence):
        """The correlation of each target unit's best partner."""
        source, target = evidence.live()
        r = jnp.where(source[:, None], jnp.abs(correlations(evidence)), 0)
        return from_units(jnp.max(r, axis=1), target & jnp.any(source), {})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Flipped(views.View):
    """Every unit upside down: what no measure of |r| may notice."""

    def apply(self, weights, x):
        """The units times -1."""
        return -x


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pairs(TopK):
    """Two latents a sample, whatever is asked for."""

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "k", 2)


@pytest.fixture
def arrays(tmp_path):
    rng = np.random.default_rng(0)
    z = rng.laplace(size=(160, 4))
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", (z @ rng.normal(size=(4, 4))).astype(np.float32))
    return tmp_path


def test_a_metric_a_view_and_an_sae_are_taken_by_name(arrays, conduct, monkeypatch):
    monkeypatch.setitem(registry._REGISTERED, "best_absolute", BestAbsolute())
    monkeypatch.setitem(views.VIEWS, "flipped", Flipped)
    monkeypatch.setitem(sp.sae.ARCHITECTURES, "pairs", Pairs)
    config = align.get_config()
    config.source, config.target = f"{arrays}/a.npy", f"{arrays}/b.npy"
    config.update({"n_seeds": 1, "n_folds": 2, "metrics": ("best_absolute",)})
    config.comparisons = ("neuron->neuron", "flipped->flipped", "flipped->neuron", "sae->neuron")
    config.sae.update({"architecture": "pairs", "expansion": 2.0, "k": 3, "steps": 5, "batch_size": 16})
    _, results = conduct(align, config)
    means = {row["comparison"]: row["mean"] for row in results["rows"]}
    assert means["flipped->neuron"] == pytest.approx(means["neuron->neuron"], abs=1e-6)
    assert means["flipped->flipped"] == pytest.approx(means["neuron->neuron"], abs=1e-6)
    (l0,) = [row["l0"] for row in results["views"] if row["view"] == "sae"]
    assert l0 <= 2


def test_a_recording_is_read_by_name(arrays, monkeypatch):
    def load_mine(path, scale=1.0):
        """Responses that are a file as it is."""
        return sp.brain.Recording(responses=np.load(path) * (scale or 1.0))

    monkeypatch.setitem(sp.brain.RECORDINGS, "mine", load_mine)
    config = brain_alignment.get_config()
    config.update({"recording": "mine", "path": f"{arrays}/b.npy", "activations": (f"{arrays}/a.npy",), "n_blocks": 2})
    config.update({"metrics": ("semi_match",)})
    recording, sides = brain_alignment.read(config)
    planned = brain_alignment.plan(config, recording, sides)
    assert planned.divided.scored["recording"].shape == (80, 1, 4)
    assert "sae->site" in planned.comparisons


def test_a_new_autoencoder_is_checked_saved_loaded_and_swept(tmp_path, key):
    kept = dict(sp.sae.ARCHITECTURES)

    @sp.sae.register("offset")
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Offset(sp.sae.SparseAutoencoder):
        """Latents that must pass one threshold."""

        offset: float = dataclasses.field(metadata=POSITIVE)

        ladder: ClassVar = ("offset", (0.1, 0.3, 1.0))

        def _code(self, params, x, step):
            pre = self._pre(params, x)
            return Code(pre, jax.nn.relu(pre - self.offset))

    try:
        config = sae_sweep.get_config()
        assert "offset" in config.architectures
        assert sae_sweep.sae(config, 16, "offset", 64, 1).offset == 0.3
        with pytest.raises(ValueError, match="offset must be above 0, got 0"):
            Offset(3, 6, 0)
        saved = Offset(3, 6, 0.1, dead="resample")
        sp.sae.save(tmp_path / "saved", saved, saved.init(key))
        loaded, params = sp.sae.load(tmp_path / "saved")
        assert loaded == saved
        np.testing.assert_array_equal(loaded.encode(params, jnp.ones((4, 3))), saved.encode(params, jnp.ones((4, 3))))
        with pytest.raises(ValueError, match="got offset, which SAELens cannot compute"):
            sp.sae.save(tmp_path / "saelens", saved, params, format="saelens")
    finally:
        sp.sae.ARCHITECTURES.clear()
        sp.sae.ARCHITECTURES.update(kept)


def test_names_are_given_once():
    with pytest.raises(ValueError, match="metric named 'ridge' already"):
        sp.metrics.register(sp.metrics.Ridge(per_target=True))
    with pytest.raises(ValueError, match="got 'topk'"):
        sp.sae.register("topk")(TopK)
    with pytest.raises(ValueError, match="ladder must name a field and three values"):
        sp.sae.register("base")(sp.sae.SparseAutoencoder)
    assert "base" not in sp.sae.ARCHITECTURES
