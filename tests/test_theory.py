import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment, linprog

import superpos as sp
from superpos import arrangements, theory

KEY = jax.random.key(0)
FEATURES = sp.features.GroupedFeatures(6, 2, probability=0.2)
SIGMA = sp.features.covariance(FEATURES)


@pytest.fixture(scope="module")
def pair():
    a, b = (arrangements.gaussian(jax.random.key(seed), 12, 5) for seed in (1, 2))
    z = FEATURES.sample(KEY, 400_000)
    return a, b, z @ a, z @ b


def test_correlations_are_those_of_a_large_sample(pair):
    a, b, x, y = pair
    sampled = np.corrcoef(np.asarray(x), np.asarray(y), rowvar=False)[:5, 5:]
    np.testing.assert_allclose(theory.correlations(a, b, SIGMA), sampled, atol=5 / np.sqrt(400_000))


@jax.jit  # compiled once for all tests
def scores(moments):
    return {name: score.mean for name, score in sp.score(moments, theory.PREDICTED).items()}


@pytest.mark.slow
def test_predictions_agree_with_a_large_sample(pair):
    a, b, x, y = pair
    moments = sp.moments.init(5, 5, 3, sp.reads(theory.PREDICTED))
    sampled = scores(sp.moments.update(moments, x, y, np.arange(len(x)) % 3))
    predicted = scores(theory.population(a, b, SIGMA))
    for name in theory.PREDICTED:
        np.testing.assert_allclose(predicted[name], sampled[name], atol=5e-3, err_msg=name)


def test_inner_product_rsa_tends_to_cka(pair):
    a, b, x, y = pair
    gram = [np.asarray(side[:2000], np.float64) for side in (x, y)]
    gram = [(side - side.mean(0)) @ (side - side.mean(0)).T for side in gram]
    upper = np.triu_indices(2000, 1)
    rsa = np.corrcoef(gram[0][upper], gram[1][upper])[0, 1]
    np.testing.assert_allclose(theory.predict(a, b, SIGMA, "cka")["cka"].mean, rsa, atol=0.03)


def test_equal_up_to_permutation_and_positive_scale_is_a_perfect_match(pair):
    a, b, *_ = pair
    same = arrangements.scale_units(KEY, arrangements.permute_units(KEY, a))
    predicted = scores(theory.population(a, same, SIGMA))
    for name in ("semi_match", "permutation_match", "soft_match"):
        np.testing.assert_allclose(predicted[name], 1, atol=1e-6)
    matchable = jax.jit(theory.perfectly_matchable)
    assert matchable(a, same, SIGMA)
    assert not matchable(a, -same, SIGMA)
    assert not matchable(a, b, SIGMA)


def test_rotating_further_matches_less():
    a = arrangements.unit_norm(KEY, 24, 8)

    def score(key, t):
        rotated = a @ arrangements.rotation(key, 8, t)
        return jnp.mean(jnp.max(theory.correlations(a, rotated, jnp.eye(24)), axis=0))

    fractions = jnp.array([0.0, 0.1, 0.2, 0.4, 0.8])
    scores = jax.vmap(jax.vmap(score, (None, 0)), (0, None))(jax.random.split(KEY, 64), fractions).mean(axis=0)
    np.testing.assert_allclose(scores[0], 1, atol=1e-6)
    assert (np.diff(scores) < 0).all()


@pytest.mark.parametrize(
    ("n_features", "n_units"), [(64, 8), *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in ((64, 32), (256, 64)))]
)
def test_random_arrangements_score_what_the_formula_says(n_features, n_units):
    rng = np.random.default_rng(0)
    semi, one_to_one = [], []
    for _ in range(6000 // n_units):
        a, b = rng.standard_normal((2, n_features, n_units))
        r = (a / np.linalg.norm(a, axis=0)).T @ (b / np.linalg.norm(b, axis=0))
        semi.append(r.max(axis=0).mean())
        one_to_one.append(r[linear_sum_assignment(-r)].mean())
    np.testing.assert_allclose(theory.random_semi_match(n_units, n_features), np.mean(semi), rtol=0.01)
    np.testing.assert_allclose(theory.random_permutation_match(n_units, n_features), np.mean(one_to_one), rtol=0.05)


def test_effective_dimension():
    np.testing.assert_allclose(theory.effective_dimension(3 * jnp.eye(7)), 7, rtol=1e-6)
    np.testing.assert_allclose(theory.effective_dimension(jnp.diag(jnp.array([1.0, 1.0, 0.0]))), 2, rtol=1e-6)


def test_sparse_features_below_the_coherence_bound_are_found():
    a = arrangements.equiangular(KEY, 30, 15)
    most = float(theory.recoverable_sparsity(a))
    k = int(np.ceil(most) - 1)
    assert k == 3
    rng = np.random.default_rng(0)
    z = np.zeros((200, 30), np.float32)
    for row in z:
        row[rng.choice(30, k, replace=False)] = rng.uniform(0.1, 1, k)
    np.testing.assert_allclose(sp.sparse_coding.omp(jnp.asarray(z) @ a, a, k), z, atol=1e-4)


def test_isometry_condition():
    assert theory.isometry_recovers(0.41)
    assert not theory.isometry_recovers(0.42)


def test_phase_transition_is_where_the_least_sum_of_features_stops_being_the_true_one():
    shares = np.asarray(theory.phase_transition(np.array([[0.25, 0.5], [0.75, 1.0]])))
    np.testing.assert_allclose(shares[0, 1] / 0.5, 0.558, atol=1e-3)  # Donoho & Tanner's table
    np.testing.assert_allclose(shares[1, 1], 1, atol=1e-6)
    rng = np.random.default_rng(0)

    def recovered(n_units, k):
        a, z = rng.standard_normal((200, n_units)), np.zeros(200)
        z[rng.choice(200, k, replace=False)] = rng.random(k)
        found = linprog(np.ones(200), A_eq=a.T, b_eq=z @ a, bounds=(0, None)).x
        return found is not None and np.abs(found - z).max() < 1e-5

    for compression, share in zip((0.25, 0.5, 0.75), shares.ravel()[:3], strict=True):
        below, above = (
            np.mean([recovered(int(200 * compression), round(200 * factor * share)) for _ in range(10)])
            for factor in (0.7, 1.3)
        )
        assert below >= 0.9
        assert above <= 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b, c: (a[:10], b, c), r"of the same features, got \(10, 5\), \(12, 5\) and \(12, 12\)"),
        (lambda a, b, c: (a.at[0, 0].set(jnp.nan), b, c), "a must be finite"),
        (lambda a, b, c: (a, b, -c), "covariance must be symmetric, with variances of at least 0"),
        (lambda a, b, c: (a, b, c.at[0, 5].set(1)), "covariance must be symmetric"),
        (lambda a, b, c: (a, b, FEATURES), r"pass sp.features.covariance\(features\)"),
    ],
)
def test_what_cannot_be_predicted(pair, change, message):
    a, b, *_ = pair
    with pytest.raises(ValueError, match=message):
        theory.predict(*change(a, b, SIGMA), "cka")


def test_many_pairs_are_predicted_as_one_by_one(pair):
    a, b, *_ = pair
    many = theory.predict_pairs(jnp.stack([a, b, a]), jnp.stack([b, a, a]), SIGMA, ("cka", "ridge", "semi_match"), block=2)
    for i, sides in enumerate(((a, b), (b, a), (a, a))):
        one = scores(theory.population(*sides, SIGMA))
        for name in many:
            np.testing.assert_allclose(many[name][i], one[name], atol=2e-5, err_msg=name)
    with pytest.raises(ValueError, match=r"as many pairs each, got \(2, 12, 5\) and \(1, 12, 5\)"):
        theory.predict_pairs(jnp.stack([a, b]), b[None], SIGMA)


def test_edges_of_formulas():
    assert theory.random_permutation_match(1, 64) == 0
    np.testing.assert_array_equal(np.isnan(theory.phase_transition(jnp.array([-0.5, 0.5, 1.5]))), [True, False, True])
    with pytest.raises(ValueError, match="n_units must be an integer of at least 1, got 0"):
        theory.random_semi_match(0, 64)
