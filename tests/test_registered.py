"""What every metric, view, autoencoder and generator of features promises: a new one is held to it by being there."""

import dataclasses
import inspect
import pickle

import jax
import numpy as np
import pytest

import superpos as sp

KEY = jax.random.key(0)
FEATURES = {
    "SparseFeatures": sp.features.SparseFeatures(6, 0.3),
    "GroupedFeatures": sp.features.GroupedFeatures(2, 3, probability=0.3),
    "AnchoredFeatures": sp.features.AnchoredFeatures(np.array([0.5], np.float32), 0.3),
    "HierarchicalFeatures": sp.features.HierarchicalFeatures(2, 2),
}
REQUIRED = {"vanilla": {"l1": 0.3}, "jumprelu": {"l0": 0.2}, "gated": {"l1": 0.3}, "nonnegative": {"l1": 0.3}}


def autoencoder(name):
    kind = sp.sae.ARCHITECTURES[name]
    takes_k = any(field.name == "k" and field.default is dataclasses.MISSING for field in dataclasses.fields(kind))
    return kind(4, 6, **({"k": 2} if takes_k else {}), **REQUIRED.get(name, {}))


EVERYTHING = {
    **{f"metric {name}": sp.metrics.resolve(name)[0] for name in sp.metrics.names()},
    **{f"features {name}": features for name, features in FEATURES.items()},
    **{f"sae {name}": autoencoder(name) for name in sp.sae.ARCHITECTURES},
}


def test_every_generator_of_features_is_here():
    classes = [name for name, kind in inspect.getmembers(sp.features, inspect.isclass) if hasattr(kind, "sample")]
    assert sorted(classes) == sorted(FEATURES)


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_configuration_is_a_small_value(name):
    it = EVERYTHING[name]
    again = pickle.loads(pickle.dumps(it))
    assert again == it
    assert repr(again) == repr(it)
    assert repr(it).startswith(f"{type(it).__name__}(")
    assert len(repr(it)) < 700
    assert dataclasses.replace(it) == it
    field = dataclasses.fields(it)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(it, field, None)


@pytest.mark.parametrize("name", FEATURES)
def test_samples_are_functions_of_their_key(name):
    features = FEATURES[name]
    keys = jax.random.split(KEY, 2)
    batched = jax.jit(jax.vmap(lambda features, key: features.sample(key, 5), (None, 0)))(features, keys)
    assert (batched.shape, batched.dtype) == ((2, 5, features.n_features), np.float32)
    np.testing.assert_allclose(features.sample(keys[1], 5), batched[1], atol=1e-6)  # as without jit and vmap
    assert not np.array_equal(batched[0], batched[1])
    assert np.all(batched >= 0)
    assert np.isfinite(batched).all()
