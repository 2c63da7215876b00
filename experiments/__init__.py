"""One module a question: `python -m experiments.<name>`."""

# What stands on each side of a score: neurons, the latents of trained SAEs, and of untrained ones as a control.
COMPARISONS = (
    "neuron->neuron",
    "sae->neuron",
    "sae->sae",
    "random_sae->neuron",
    "random_sae->sae",
    "random_sae->random_sae",
)
# Beside them, components by sign and independent ones: other bases of the same units.
WITH_BASES = (COMPARISONS[0], "signed_pca->signed_pca", "ica->ica", *COMPARISONS[1:])
