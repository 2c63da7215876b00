"""Everything that is registered lowers for accelerators, without float64 and without waiting for the host."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import export

import superpos as sp
from experiments import toy_alignment, toys
from superpos.metrics import Samples

PLATFORMS = ("cuda", "tpu")
REQUIRED = {"k": 3, "l1": 0.3, "l0": 0.2}  # what architectures may require beside their sizes


def program(function, *arguments):
    """The exported program, as text."""
    return export.export(jax.jit(function), platforms=PLATFORMS)(*arguments).mlir_module()


def metric(name):
    """Fits and scores what the metric reads, as `sp.align` and `sp.score` do."""
    (one,) = sp.metrics.resolve(name)
    if "samples" in one.reads:
        x, y, ids = (jax.ShapeDtypeStruct(*a) for a in (((60, 5), jnp.float32), ((60, 4), jnp.float32), ((60,), jnp.int32)))
        return program(lambda x, y, ids: one(Samples(x, y, ids, x[0] > 0, y[0] > 0, n_folds=3, largest_fold=20)), x, y, ids)
    return program(one, jax.eval_shape(lambda: sp.moments.init(5, 4, 3, sp.reads(name))))


def architecture(name):
    """Trains for two steps on what it is given."""
    kind = sp.sae.ARCHITECTURES[name]
    fields = kind.__dataclass_fields__
    sae = kind(4, 8, **{field: value for field, value in REQUIRED.items() if field in fields})

    def train(key, x):
        return sp.fit(sae, key, lambda key, n: jax.random.choice(key, x, (n,)), steps=2, batch_size=16)

    return program(train, jax.random.key(0), jax.ShapeDtypeStruct((50, 4), jnp.float32))


# A registry more is a line more: its name, the names in it, and what makes a program of one.
REGISTRIES = {
    "metric": (sp.metrics.names(), metric),
    "sae": (sp.sae.ARCHITECTURES, architecture),
}
REGISTERED = [(registry, name) for registry, (names, _) in REGISTRIES.items() for name in names]


@pytest.mark.parametrize(("registry", "name"), REGISTERED)
def test_what_is_registered(registry, name):
    text = REGISTRIES[registry][1](name)
    assert "f64" not in text
    assert "callback" not in text


def test_the_toy_study():
    config = toy_alignment.get_config()
    config.n_hidden, config.metrics = (8,), ("semi_match",)  # the others are above
    names = toy_alignment.views(config)

    def one_pair(keys, data_key, eval_key):
        states = jax.vmap(functools.partial(toys.train, config, names, n_hidden=8), (0, None))(keys, data_key)
        pair = (jax.tree.map(lambda leaf, i=i: leaf[i], states) for i in (0, 1))
        return toys.score(config, config.comparisons, config.metrics, *pair, eval_key)

    keys = jax.random.split(jax.random.key(0), 2)
    text = program(one_pair, keys, jax.random.key(1), jax.random.key(2))
    assert "f64" not in text
    assert "callback" not in text
