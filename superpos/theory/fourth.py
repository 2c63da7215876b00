"""Fourth order: why cumulants see through superposition, how far, and how many samples they need.

**Theorem.** Let features z be independent with fourth cumulants κ_i = cum(z_i, z_i, z_i, z_i), x = z A + e and y = z B + f
with e and f Gaussian and independent of z. Then

    cov(|x|², |y|²) - 2 ‖cov(x, y)‖² = Σ_i κ_i |a_i|² |b_i|²,

the sum over features that both sides have. *Proof.* For centred variables E[x_i² y_k²] = cum(x_i, x_i, y_k, y_k) + E[x_i²]
E[y_k²] + 2 E[x_i y_k]², the sum over partitions of four variables without single ones (McCullagh 1987, section 2.3). So the
left side is Σ_ik cum(x_i, x_i, y_k, y_k). Cumulants are linear in each argument: this is Σ_ik Σ_pqrs A_pi A_qi B_rk B_sk
cum(z_p, z_q, z_r, z_s) = Σ_pqrs (a_p · a_q) (b_r · b_s) cum(z_p, z_q, z_r, z_s), and the noise adds cumulants of its own and
mixed ones. A joint cumulant is 0 where its arguments fall into two independent sets, and where they are Gaussian. So noise
adds nothing, and of features only p = q = r = s is left. A feature of one side alone has a row of zeros in the other. ∎

The interference of two features, a_p · a_q, is multiplied by a cumulant that vanishes: no arrangement matters. **Correlated
features** keep it: they add Σ cum(z_p, z_q, z_r, z_s) (a_p · a_q) (b_r · b_s) over sets of indices that are not all equal,
first of all Σ_{p≠r} cum(z_p, z_p, z_r, z_r) |a_p|² |b_r|². That part is positive where features are active together or share
a gain, and does not ask whether a feature is shared, which is why a common gain makes unrelated sides alike.
`energy_cumulant` takes the whole tensor.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from superpos.linalg import matmul
from superpos.metrics.base import positive_integer
from superpos.theory.weights import Arrangement, covariances


def feature_cumulants(probability: Any) -> Array:
    """κ of a feature that is active with a probability and then uniform on (0, 1): `sp.features.SparseFeatures`; any shape.

    From E z^k = p / (k + 1). Positive below a probability of .41, and negative above: there cumulants see it with the other
    sign.

    >>> print(feature_cumulants(jnp.array([0.05, 0.6])).round(5))
    [ 0.00804 -0.0126 ]
    """
    p = jnp.asarray(probability, jnp.result_type(float))
    m1, m2, m3, m4 = (p / (k + 1) for k in (1, 2, 3, 4))
    return m4 - 4 * m3 * m1 - 3 * m2**2 + 12 * m2 * m1**2 - 6 * m1**4


def energy_cumulant(a: Arrangement, b: Arrangement, cumulants: Any) -> Float[Array, ""]:
    """cov(|x|², |y|²) - 2 ‖cov(x, y)‖² of x = z A and y = z B: the theorem of the module.

    Args:
        a, b: arrangements of the same features, `(n_features, n_units)`.
        cumulants: κ of independent features, `(n_features,)`; or all fourth cumulants of correlated ones, `(n_features,) * 4`.

    Raises:
        ValueError: shapes that do not fit.
    """
    a, b, cumulants = (jnp.asarray(value, jnp.result_type(float)) for value in (a, b, cumulants))
    n = len(a)
    if a.ndim != 2 or b.ndim != 2 or len(b) != n or cumulants.shape not in ((n,), (n,) * 4):
        raise ValueError(
            "a and b must be (n_features, n_units) of the same features, and cumulants (n_features,) or (n_features,) * 4, got "
            f"{a.shape}, {b.shape} and {cumulants.shape}."
        )
    if cumulants.ndim == 1:
        return jnp.sum(cumulants * jnp.sum(a**2, axis=1) * jnp.sum(b**2, axis=1))
    return jnp.einsum("pqrs,pq,rs->", cumulants, matmul(a, a.T), matmul(b, b.T), precision="highest")


def cokurtosis(a: Arrangement, b: Arrangement, cumulants: Any) -> Float[Array, ""]:
    """The cokurtosis of an endless sample: from weights alone, the overlap that superposition hides.

    Args:
        a, b, cumulants: as in `energy_cumulant`. Features of one side alone are rows of zeros in the other.

    Returns:
        Σ κ |a|² |b|² / √(Σ κ |a|⁴ Σ κ |b|⁴): of features of one norm and law, the share that both sides have.

    >>> a = jnp.array([[1.0, 0.0], [0.6, 0.8], [0.0, 0.0]])
    >>> b = jnp.array([[0.0, 1.0], [0.0, 0.0], [0.8, 0.6]])  # one feature of two is shared
    >>> round(float(cokurtosis(a, b, jnp.ones(3))), 3)
    0.5
    """
    xy, xx, yy = (energy_cumulant(*sides, cumulants) for sides in ((a, b), (a, a), (b, b)))
    return xy / jnp.sqrt(xx * yy)


class SamplingError(NamedTuple):
    """The standard error of a cokurtosis of N samples.

    Attributes:
        error: of one score.
        unrelated: of sides without a shared feature.
        samples: how many make `unrelated` .05.
    """

    error: Float[Array, ""]
    unrelated: Float[Array, ""]
    samples: Float[Array, ""]


def cokurtosis_error(
    a: Arrangement, b: Arrangement, covariance: Float[Array, "features features"], cumulants: Any, n_samples: int
) -> SamplingError:
    """How far a cokurtosis of N independent samples varies about that of endless ones.

    With V = var |x|² = k(x, x) + 2 ‖cov(x)‖² and v = V / k(x, x): of unrelated sides the k-statistic is a mean of products of
    independent energies, so that the standard error of the score is √(v_x v_y / N), exact to leading order. v is large where
    many features are mixed into few units, as 2 ‖cov(x)‖² is Gaussian in kind: that is what superposition costs, samples
    instead of bias. Of related sides energies are taken to be Gaussian: with w = cov(|x|², |y|²) / √(k k) and c the
    cokurtosis, N var = v_x v_y + w² - 2 c w (v_x + v_y) + c² (v_x² + v_y² + 2 w²) / 2, an approximation that is too low for
    very sparse features.

    Args:
        a, b: arrangements of the same features.
        covariance: of the features.
        cumulants: as in `energy_cumulant`.
        n_samples: N.

    Raises:
        ValueError: as `predict` and `energy_cumulant`; an `n_samples` below 1.
    """
    positive_integer("n_samples", n_samples)
    xx, xy, yy = (2 * jnp.sum(matrix**2) for matrix in covariances(a, b, covariance))
    kxy, kxx, kyy = (energy_cumulant(*sides, cumulants) for sides in ((a, b), (a, a), (b, b)))
    scale = jnp.sqrt(kxx * kyy)
    left, right, both, score = 1 + xx / kxx, 1 + yy / kyy, (kxy + xy) / scale, kxy / scale
    variance = left * right + both**2 - 2 * score * both * (left + right) + score**2 * (left**2 + right**2 + 2 * both**2) / 2
    unrelated = left * right
    return SamplingError(jnp.sqrt(jnp.maximum(variance, 0) / n_samples), jnp.sqrt(unrelated / n_samples), unrelated / 0.05**2)
