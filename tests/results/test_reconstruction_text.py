from pdiff_hf.results.text import reconstruction


def test_what_the_gate_has_found_is_said_of_each_kind_of_tensor():
    kinds = {"weights": 0.9312, "running statistics": 1.0}
    text = reconstruction({"explained_variance": 0.95, "explained_by_kind": kinds, "accuracy_drop": 0.001})
    assert text == (
        "The autoencoder explains 95.00 % of the variance of held-out checkpoints (weights 93.1 %, running statistics "
        "100.0 %); reconstruction loses 0.10 points of accuracy."
    )
    # As it was written before kinds were measured, and where nothing varies.
    for gate in ({"explained_variance": 1.0}, {"explained_variance": 1.0, "explained_by_kind": {}}):
        assert reconstruction(gate) == "The autoencoder explains 100.00 % of the variance of held-out checkpoints."
