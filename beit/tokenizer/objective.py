"""The tokenizer objective: train a discrete VAE by DALL-E's relaxed evidence lower bound.

arXiv 2102.12092, section 2.1 and appendix A.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from beit.config import OptimConfig
from beit.objectives.base import Objective, derive, worker_rank
from beit.tokenizer.config import PX_PER_TOKEN, DvaeConfig, DvaeTrainConfig
from beit.tokenizer.dvae import Dvae, initialise, map_pixels, unmap_pixels
from beit.tokenizer.spread_tokens import spread_tokens

WEIGHTS = "model.safetensors"
AVERAGE = "average.safetensors"

VALUES_PER_TOKEN = 3 * PX_PER_TOKEN**2
"""Pixel values that one token stands for: 192."""

NOISE = 0x6E6F6973
"""[seed, purpose, step, worker]: the purpose of the noise keeps its generator apart from others."""


def cosine(step: float, steps: float, first: float, last: float) -> float:
    """Fall along half a cosine from `first` at step 0 to `last` at `steps`, then stay at `last`."""
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1))) if steps > 0 else last


# B images of H x W pixels, h x w visual tokens, V different tokens
def negative_log_likelihood(mapped: Tensor, statistics: Tensor) -> Tensor:
    """Return the negative log density of the logit-Laplace distribution; below 0 if the density is above 1.

    Args:
        mapped: float [B, 3, H, W] in (0, 1), from `map_pixels`.
        statistics: float [B, 6, H, W] from the decoder: location, then log scale.

    Returns:
        Nats, float [B, 3, H, W].
    """
    location, log_scale = statistics.chunk(2, dim=1)
    distance = (torch.logit(mapped) - location).abs()
    nats: Tensor = (
        math.log(2) + log_scale + torch.log(mapped * (1 - mapped)) + distance * torch.exp(-log_scale)
    )
    return nats


def divergence_from_uniform(log_q: Tensor) -> Tensor:
    """Return KL(q || uniform) in nats: log-probabilities float [B, V, h, w] -> [B, h, w]."""
    return math.log(log_q.shape[1]) + (log_q.exp() * log_q).sum(1)


def entropy(probabilities: Tensor) -> Tensor:
    """Return the entropy in nats over the last dimension."""
    # The slope of -p log p is infinite at 0: a token with probability 0 everywhere would make the gradient
    # NaN.
    kept = probabilities.clamp(min=1e-12)
    return -(kept * kept.log()).sum(-1)


class DvaeObjective(Objective):
    """A discrete VAE with its bound. A batch's loss is the sum over its images; undecodable ones add nothing.

    The loss of an image is the mean negative log-likelihood over its pixels and channels, in nats, plus
    `kl_weight / 192` times the mean divergence of its positions, minus `marginal_weight` times the entropy of
    the mean token distribution. That distribution is the mean over the images of one `forward`, so with
    `marginal_weight` above 0 the gradient depends a little on how a batch is divided among workers. Otherwise
    it depends on that only through the noise, which every worker draws for itself.
    """

    columns: ClassVar[tuple[str, ...]] = ("patch_view", "status")

    def __init__(
        self, dvae: DvaeConfig, train: DvaeTrainConfig, optim: OptimConfig, *, total_steps: int, seed: int
    ) -> None:
        """Build and initialise the model.

        Args:
            dvae: Size of the model.
            train: Schedules of the bound, relative to `total_steps`.
            optim: AdamW and the learning rate.
            total_steps: Optimizer steps of the whole run.
            seed: Seed of the initial weights and of the noise.
        """
        super().__init__()
        self.train_config = train
        self.optim_config = optim
        self.total_steps = total_steps
        self.seed = seed
        # The images' memory layout for the weights, too, saves a seventh of the time on a CPU.
        self.dvae = Dvae(dvae).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        generator = torch.Generator().manual_seed(seed)
        initialise(self.dvae, generator)
        if train.first_logit_std is not None:
            spread_tokens(self.dvae.encoder, train.first_logit_std, generator)
        self.average: Dvae | None = None
        if train.ema_decay is not None:
            self.average = copy.deepcopy(self.dvae).requires_grad_(False)
        self.start_step(0)

    @property
    def trained(self) -> Dvae:
        """The model to save: the running mean if there is one."""
        return self.dvae if self.average is None else self.average

    def weight(self, batch: Mapping[str, NDArray[Any]]) -> float:
        """Return the number of decoded images."""
        return float((batch["status"] == 0).sum())

    def start_step(self, step: int) -> None:
        """Set temperature, weight of the divergence and generator of the noise, all from the step alone."""
        train = self.train_config
        self.temperature = cosine(
            step, train.temperature_share * self.total_steps, train.first_temperature, train.last_temperature
        )
        self.kl_weight = cosine(step, train.kl_share * self.total_steps, 0.0, train.kl_weight)
        device = next(self.dvae.parameters()).device
        self._noise = torch.Generator(device).manual_seed(derive(self.seed, NOISE, step, worker_rank()))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return sums over the decoded images.

        Args:
            batch: "patch_view" uint8 [B, H, W, 3], H and W multiples of 8; "status" uint8 [B], 0 = decoded.

        Returns:
            "loss", with the gradient; "bound", "kl", "marginal" (entropy of the mean distribution) and
            "error" (mean absolute error of pixels in [0, 1], with the relaxed tokens), each a mean times the
            number of decoded images; "tokens", float64 [V]: how often each token is the most probable.
        """
        images = batch["patch_view"].permute(0, 3, 1, 2)
        decoded = (batch["status"] == 0).float()
        mapped = map_pixels(images).contiguous(memory_format=torch.channels_last)

        logits = self.dvae.encoder(mapped).float()
        log_q = F.log_softmax(logits, dim=1)
        # An exponential random number can be 0 on a CPU; without the clamp, its logarithm would lead to
        # infinity / infinity in the softmax.
        gumbel = torch.empty_like(logits).exponential_(generator=self._noise).clamp_(min=1e-10).log_().neg_()
        codes = F.softmax((logits + gumbel) / self.temperature, dim=1)
        statistics = self.dvae.decoder(codes).float()

        reconstruction = negative_log_likelihood(mapped, statistics).mean((1, 2, 3))
        kl = divergence_from_uniform(log_q).mean((1, 2))
        bound = reconstruction + self.kl_weight / VALUES_PER_TOKEN * kl
        count = decoded.sum()
        loss = (bound * decoded).sum()
        marginal = torch.zeros_like(count)
        if self.train_config.marginal_weight:
            # A sum, not a matrix product, because autocast would round the latter to bfloat16.
            mean_q = (log_q.exp().mean((2, 3)) * decoded[:, None]).sum(0) / count.clamp(min=1)
            marginal = entropy(mean_q) * count
            loss = loss - self.train_config.marginal_weight * marginal

        with torch.no_grad():
            error = (unmap_pixels(statistics[:, :3].sigmoid()) - unmap_pixels(mapped)).abs().mean((1, 2, 3))
            tokens = logits.argmax(1).flatten(1)
            used = torch.zeros(logits.shape[1], dtype=torch.float64, device=logits.device)
            used.scatter_add_(0, tokens.flatten(), decoded.double()[:, None].expand_as(tokens).flatten())
            sums = {
                "bound": (bound * decoded).sum(),
                "kl": (kl * decoded).sum(),
                "error": (error * decoded).sum(),
                "marginal": marginal,
            }
        return {
            "loss": loss,
            **{name: value.detach() for name, value in sums.items()},
            "tokens": used,
        }

    def optimizer(self) -> torch.optim.Optimizer:
        """Return AdamW with weight decay on all parameters, biases included, as DALL-E's authors have it.

        Encoder and decoder are two parameter groups.
        """
        optim = self.optim_config
        return torch.optim.AdamW(
            [
                {"params": list(self.dvae.encoder.parameters()), "lr_scale": self.train_config.encoder_lr},
                {"params": list(self.dvae.decoder.parameters()), "lr_scale": 1.0},
            ],
            lr=optim.peak_lr,
            betas=(optim.beta1, optim.beta2),
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            fused=True,
        )

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step: linear warmup, then half a cosine from `peak_lr` to `min_lr`.

        The minimum is reached after `lr_share` of the steps.
        """
        optim = self.optim_config
        if step < optim.warmup:
            return optim.peak_lr * (step + 1) / optim.warmup
        end = self.train_config.lr_share * (self.total_steps - 1)
        return cosine(step - optim.warmup, end - optim.warmup, optim.peak_lr, optim.min_lr)

    @torch.no_grad()
    def finish_step(self, step: int) -> None:
        """Update the running mean."""
        if self.average is not None and self.train_config.ema_decay is not None:
            # At first it is a mean over the last tenth of the steps; otherwise it would retain the random
            # initial weights.
            decay = min(self.train_config.ema_decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(self.average.parameters()), list(self.dvae.parameters()), 1 - decay)

    def metrics(self, sums: dict[str, NDArray[Any]], weight: float) -> dict[str, float]:
        """Return means over the images since the last report, and how often tokens were used.

        Returns:
            "loss", "bound", "kl" (nats), "error" ([0, 1], with the relaxed tokens), "perplexity" (of the most
            probable tokens), "dead" (number of tokens that were never the most probable), "temperature",
            "kl_weight", and, with `marginal_weight`, "marginal" (nats).
        """
        mean = {
            name: float(sums[name]) / max(weight, 1) for name in ("loss", "bound", "kl", "error", "marginal")
        }
        if not self.train_config.marginal_weight:
            del mean["marginal"]
        counts = np.asarray(sums["tokens"], np.float64)
        used = counts[counts > 0] / max(counts.sum(), 1)
        return {
            **mean,
            "perplexity": float(np.exp(-(used * np.log(used)).sum())),
            "dead": float((counts == 0).sum()),
            "temperature": self.temperature,
            "kl_weight": self.kl_weight,
        }

    def save(self, folder: Path) -> None:
        """Write the trained weights, and their running mean if there is one."""
        for name, dvae in ((WEIGHTS, self.dvae), (AVERAGE, self.average)):
            if dvae is not None:
                save_file(
                    {key: value.detach().cpu().contiguous() for key, value in dvae.state_dict().items()},
                    folder / name,
                )

    def load(self, folder: Path) -> None:
        """Read the files that `save` wrote, onto the model's device."""
        for name, dvae in ((WEIGHTS, self.dvae), (AVERAGE, self.average)):
            if dvae is not None:
                dvae.load_state_dict(load_file(folder / name))
