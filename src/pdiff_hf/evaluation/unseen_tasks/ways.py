"""The ways to networks for unseen tasks."""

# By name of the way: what its networks are, as a part of a sentence, and its role.
WAYS = {
    "generated": ("networks drawn for the task", "generator"),
    "shuffled": ("networks drawn for another unseen task", "generator"),
    "expected": ("what the denoiser's regression expects (truncation 0)", "generator"),
    "oracle": ("networks trained on the task", "reference"),
    "majority": ("the more frequent answer", "reference"),
    "multi_task": ("one network for all classes, its probabilities summed over the subset", "ceiling"),
    "complement_flipped": ("the seen network of the complement with its answers flipped", "ceiling"),
    "hypernetwork": ("a perceptron from condition to weights, trained on the labels of seen tasks", "ceiling"),
    "fine_tuned": ("the mean of the seen networks, fine-tuned for a share of the generator's seconds", "ceiling"),
    "few_shot_1": ("the mean of the seen networks, trained on one example of every class", "ceiling"),
    "few_shot_5": ("the mean of the seen networks, trained on 5 examples of every class", "ceiling"),
    "few_shot_20": ("the mean of the seen networks, trained on 20 examples of every class", "ceiling"),
    "nearest": ("the network of a nearest seen task", "weights"),
    "hamming_1": ("the network of a seen task that differs in one class", "weights"),
    "nearest_mean": ("the mean of the networks of the nearest seen tasks", "weights"),
    "weighted_mean": ("the mean of all seen networks, weighted by the distance of their subsets", "weights"),
    "mean_seen": ("the mean of all seen networks", "weights"),
    "task_arithmetic": ("the mean of the seen networks and a vector for every class", "weights"),
    "merge_nearest_svd": ("the mean of what adapters of the nearest seen tasks add, at their rank", "weights"),
    "merge_weighted_svd": (
        "what all seen adapters add, weighted by the distance of their subsets, at their rank",
        "weights",
    ),
    "merge_ridge_svd": (
        "what all seen adapters add, weighted as ridge regression makes the subset of theirs, at their rank",
        "weights",
    ),
    "merge_ties": ("adapters of the nearest seen tasks, their factors merged by TIES", "weights"),
    "merge_dare": ("adapters of the nearest seen tasks, their factors merged by DARE", "weights"),
    "ridge_weights": ("ridge regression from classes to weights", "weights"),
    "ridge_pairs_weights": ("ridge regression from classes and pairs of them to weights", "weights"),
    "kernel_ridge_weights": ("kernel ridge regression from classes to weights", "weights"),
    "perceptron_weights": ("a perceptron from classes to weights", "weights"),
    "reconstructed": ("the trained network, encoded and decoded", "latents"),
    "ridge_latents": ("ridge regression from classes to latents", "latents"),
    "ridge_pairs_latents": ("ridge regression from classes and pairs of them to latents", "latents"),
    "kernel_ridge_latents": ("kernel ridge regression from classes to latents", "latents"),
    "gaussian_ridge_latents": (
        "draws around the best of these, by the spread of what it misses",
        "latents",
    ),
    "perceptron_latents": ("a perceptron from classes to latents", "latents"),
}

# Roles of ways that do not depend on the generator.
WITHOUT_GENERATOR = ("reference", "ceiling", "weights")
