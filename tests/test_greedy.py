"""What would take all memory is refused before it does; and what debugging flags of JAX find wrong in right answers."""

import jax
import numpy as np
import pytest

import superpos as sp

RNG = np.random.default_rng(0)


def test_fold_ids_that_are_numbers_of_something_else_are_refused():
    x = RNG.normal(size=(12, 3))
    with pytest.raises(ValueError, match=r"none empty, got 12 samples for 1099511627777 folds"):
        sp.align(x, x, "cka", folds=np.where(np.arange(12) == 3, 2**40, 0))


def test_moments_that_do_not_fit_are_refused_with_their_size():
    x, y = (np.repeat(np.arange(4, dtype=np.float32)[:, None], n, axis=1) for n in (2**20, 2**21))
    with pytest.raises(ValueError, match=r"source \(4, 1048576\) and target .* 16,384.0 GiB of memory, .*: compare fewer"):
        sp.align(x, y, "semi_match", folds=2)


def test_transport_that_does_not_fit_is_refused_with_its_size():
    x, y = (np.repeat(np.arange(4, dtype=np.float32)[:, None], n, axis=1) for n in (60, 2**21))
    message = r"source \(4, 60\) and target \(4, 2097152\) .* what partial_soft_match solves, .* 2,\d+\.\d GiB of memory"
    with pytest.raises(ValueError, match=message):
        sp.align(x, y, ("semi_match", "partial_soft_match"), folds=2)


def test_transport_takes_the_memory_that_it_is_said_to():
    """Of sides as unequal as 60 and 10,000 units, whose tree is larger than their costs."""
    n, m = 60, 10_000
    shapes = jax.ShapeDtypeStruct((n, m), np.float32), *(jax.ShapeDtypeStruct((k,), bool) for k in (n, m))
    used = jax.jit(sp.transport.partial).lower(*shapes, 0.5).compile().memory_analysis()
    said = sp.transport.room(n, m)
    assert 0.5 * said < used.temp_size_in_bytes + used.output_size_in_bytes < 1.2 * said


def test_soft_matching_without_jit(deep):
    if not deep:
        pytest.skip("--deep")
    x, y = RNG.normal(size=(2, 8, 2))
    expected = sp.align(x, y, "soft_match", folds=2)["soft_match"].mean
    with jax.disable_jit():
        np.testing.assert_allclose(sp.align(x, y, "soft_match", folds=2)["soft_match"].mean, expected, atol=1e-6)


def test_nan_that_is_an_answer_is_no_error_under_debug_nans():
    x, y = RNG.normal(size=(2, 12, 2))
    y[:, 0] = 1.0  # masked: its score is NaN
    with jax.debug_nans(True):
        units = sp.align(x, y, "semi_match", folds=2)["semi_match"].units
    assert np.isnan(units[:, 0]).all()
    assert np.isfinite(units[:, 1]).all()
