"""Neighbours and the linear probe against computations in numpy."""

import numpy as np
import pytest
import torch

from beit.probing.config import KnnConfig, LinearConfig
from beit.probing.probe import Labelled, fit_linear, knn_votes, probe_knn, probe_linear, score


def blobs(rng, images, dim=12, classes=4, spread=1.0):
    """Features around a centre for each class, and labels."""
    centres = np.random.default_rng(5).normal(size=(classes, dim)) * 2
    labels = rng.integers(0, classes, images)
    return (centres[labels] + spread * rng.normal(size=(images, dim))).astype(np.float16), labels


def test_each_neighbour_votes_by_its_similarity():
    rng = np.random.default_rng(0)
    train, labels = blobs(rng, 300, spread=4.0)
    val, _ = blobs(rng, 270, spread=4.0)  # More than are asked about at once.
    config = KnnConfig(neighbours=7, temperature=0.2)
    parts = list(
        knn_votes(torch.from_numpy(train), torch.from_numpy(labels), torch.from_numpy(val), 5, config)
    )
    assert len(parts) == 2
    votes = torch.cat(parts).numpy()

    wide, asked = train.astype(np.float64), val.astype(np.float64)
    cosine = asked @ wide.T / np.linalg.norm(asked, axis=1)[:, None] / np.linalg.norm(wide, axis=1)
    expected = np.zeros((270, 5))
    for query in range(270):
        for neighbour in sorted(range(300), key=lambda image, query=query: -cosine[query, image])[:7]:
            expected[query, labels[neighbour]] += np.exp(cosine[query, neighbour] / 0.2)
    share = expected / expected.sum(1, keepdims=True)
    np.testing.assert_allclose(votes / votes.sum(1, keepdims=True), share, atol=1e-5)
    assert (votes[:, 4] == 0).all()


def test_fewer_training_images_than_neighbours_all_vote_at_any_temperature():
    train = torch.eye(3)
    [votes] = knn_votes(
        train, torch.tensor([0, 1, 1]), train[:1], 2, KnnConfig(neighbours=20, temperature=1e-4)
    )
    assert votes.tolist() == [[1.0, 0.0]]


def newton(features, labels, classes, steps=60):
    """Multinomial logistic regression with a little ridge, by damped Newton steps in numpy."""
    inputs = np.concatenate([features, np.ones((len(features), 1))], 1)
    weights = np.zeros((classes, inputs.shape[1]))
    target = np.eye(classes)[labels]
    for _ in range(steps):
        logits = inputs @ weights.T
        shares = np.exp(logits - logits.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        gradient = ((shares - target).T @ inputs / len(inputs) + 1e-3 * weights).reshape(-1)
        blocks = [
            [
                (inputs * (shares[:, [i]] * ((i == j) - shares[:, [j]]))).T @ inputs / len(inputs)
                for j in range(classes)
            ]
            for i in range(classes)
        ]
        hessian = np.block(blocks) + 1e-3 * np.eye(weights.size)
        weights = weights - np.linalg.solve(hessian, gradient).reshape(weights.shape)
    return weights


def test_the_linear_probe_finds_the_logistic_regression_whatever_the_scale_of_the_features():
    rng = np.random.default_rng(1)
    train, labels = blobs(rng, 600, spread=3.0)
    val, answers = blobs(rng, 400, spread=3.0)
    scale, shift = np.geomspace(1e-2, 1e2, 12), np.linspace(-5, 5, 12)
    weights = newton(train.astype(np.float64), labels, 4)
    expected = np.argmax(np.concatenate([val, np.ones((400, 1))], 1) @ weights.T, 1)

    config = LinearConfig(epochs=120, batch_size=100, lr=2e-2)
    stretched = torch.from_numpy(
        train.astype(np.float32) * scale.astype(np.float32) + shift.astype(np.float32)
    )
    weight, bias = fit_linear(stretched, torch.from_numpy(labels), 4, config, seed=0)
    logits = (val * scale + shift) @ weight.double().numpy().T + bias.double().numpy()
    agree = np.mean(logits.argmax(1) == expected)
    assert agree > 0.98, f"only {agree:.1%} of the predictions are those of the exact solution"
    assert 0.6 < np.mean(expected == answers) < 0.99


def test_a_probe_repeats_itself_and_its_seed_matters():
    rng = np.random.default_rng(2)
    train, labels = blobs(rng, 130)
    fits = [
        fit_linear(
            torch.from_numpy(train),
            torch.from_numpy(labels),
            4,
            LinearConfig(epochs=2, batch_size=32),
            seed=seed,
        )[0]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(fits[0], fits[1])
    assert not torch.equal(fits[0], fits[2])


def test_a_number_that_never_changes_does_no_harm():
    rng = np.random.default_rng(3)
    train, labels = blobs(rng, 200)
    train[:, 3] = 7
    weight, bias = fit_linear(
        torch.from_numpy(train), torch.from_numpy(labels), 4, LinearConfig(epochs=3), seed=0
    )
    assert torch.isfinite(weight).all()
    assert torch.isfinite(bias).all()


def test_both_probes_know_separable_classes_and_guess_where_there_is_nothing_to_know():
    rng = np.random.default_rng(4)
    train, val = Labelled(*blobs(rng, 400, spread=0.3)), Labelled(*blobs(rng, 200, spread=0.3))
    noise = Labelled(rng.normal(size=(400, 12)).astype(np.float16), train.labels)
    linear = LinearConfig(epochs=20, lr=1e-2)
    assert probe_knn(train, val, 4, KnnConfig()).top1 > 0.99
    assert probe_linear(train, val, 4, linear, seed=0).top1 > 0.99
    assert probe_knn(noise, val, 4, KnnConfig()).top1 < 0.5
    assert probe_linear(noise, val, 4, linear, seed=0).top1 < 0.6


def test_the_score_counts_labels_among_the_first_and_the_first_five():
    logits = torch.tensor([[5.0, 4, 3, 2, 1, 0], [5, 4, 3, 2, 1, 0], [5, 4, 3, 2, 1, 0], [5, 4, 3, 2, 1, 0]])
    found = score(logits.split(3), np.array([0, 4, 5, 5]))
    assert (found.images, found.top1, found.top5) == (4, pytest.approx(0.25), pytest.approx(0.5))
