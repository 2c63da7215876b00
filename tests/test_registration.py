"""A metric and a sparse autoencoder are one file each, and the line that imports it: experiments take them from there."""

import dataclasses
import sys
import textwrap

import jax.numpy as jnp
import numpy as np
import pytest
from test_sae_sweep import small

import superpos as sp
from experiments import sae_sweep
from superpos.metrics import registry

METRIC = '''
    """The best partner of either sign."""

    import dataclasses
    from typing import Any

    import jax.numpy as jnp

    from superpos.metrics.base import Metric, Score, correlations, from_units
    from superpos.metrics.registry import register
    from superpos.moments import Moments


    @dataclasses.dataclass(frozen=True)
    class BestAbsolute(Metric):
        """The highest |r| of each target unit with any source unit, in each held-out part."""

        name: str = "best_absolute"

        def evaluate(self, fitted: Any, evidence: Moments) -> Score:
            """The correlation of each target unit's best partner."""
            source, target = evidence.live()
            r = jnp.where(source[:, None], jnp.abs(correlations(evidence)), 0)
            return from_units(jnp.max(r, axis=1), target & jnp.any(source), {})


    register(BestAbsolute())
'''
ARCHITECTURE = '''
    """Latents that must pass one threshold."""

    import dataclasses
    from typing import ClassVar

    import jax
    import jax.numpy as jnp

    from superpos.sae.base import Code, SparseAutoencoder, register
    from superpos.sae.options import POSITIVE


    @register("offset")
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Offset(SparseAutoencoder):
        offset: float = dataclasses.field(metadata=POSITIVE)

        ladder: ClassVar = ("offset", (0.1, 0.3, 1.0))

        def _code(self, params, x, step):
            pre = self._pre(params, x)
            return Code(pre, jax.nn.relu(pre - self.offset))
'''


@pytest.fixture
def added(tmp_path, monkeypatch):
    """Both files, imported as the line in the package would; forgotten after the test."""
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))
    kept = dict(sp.sae.ARCHITECTURES)
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in (("best_absolute", METRIC), ("offset", ARCHITECTURE)):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        __import__(name)
    yield
    for name in ("best_absolute", "offset"):
        del sys.modules[name]
    sp.sae.ARCHITECTURES.clear()
    sp.sae.ARCHITECTURES.update(kept)


def test_an_experiment_takes_a_new_metric_and_a_new_autoencoder(added, conduct):
    config = small()
    config.metrics, config.architectures = ("best_absolute",), ("offset",)
    config.sparsity.offset, config.options.offset = sae_sweep.get_config().sparsity.offset[:2], {}
    _, results = conduct(sae_sweep, config)
    assert [row["sparsity"] for row in results["rows"]] == [0.1, 0.3]
    for row in results["rows"]:
        assert 0 < row["best_absolute"] <= 1
        assert row["recovery"] > 0.2


def test_the_default_settings_take_a_new_autoencoder(added):
    config = sae_sweep.get_config()
    assert "offset" in config.architectures
    assert sae_sweep.Study(config).sae(16, "offset", 64, 1.0).offset == np.float32(0.3)


def test_a_new_autoencoder_is_checked_saved_and_loaded(added, tmp_path, key):
    kind = sp.sae.ARCHITECTURES["offset"]
    with pytest.raises(ValueError, match="offset must be above 0, got 0"):
        kind(3, 6, 0)
    sae = kind(3, 6, 0.1, dead="resample")
    sp.sae.save(tmp_path / "saved", sae, sae.init(key))
    loaded, params = sp.sae.load(tmp_path / "saved")
    assert loaded == sae
    x = jnp.ones((4, 3))
    np.testing.assert_array_equal(loaded.encode(params, x), sae.encode(params, x))
    with pytest.raises(ValueError, match="got offset, which SAELens cannot compute"):
        sp.sae.save(tmp_path / "saelens", sae, params, format="saelens")


def test_names_are_given_once():
    with pytest.raises(ValueError, match="metric named 'ridge' already"):
        sp.metrics.register(dataclasses.replace(sp.metrics.Ridge(), per_target=True))
    with pytest.raises(ValueError, match="got 'topk'"):
        sp.sae.register("topk")(sp.sae.TopK)
    with pytest.raises(ValueError, match="ladder must name a field and three values"):
        sp.sae.register("base")(sp.sae.SparseAutoencoder)
    assert "base" not in sp.sae.ARCHITECTURES
