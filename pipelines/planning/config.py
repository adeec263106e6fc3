"""Configuration of `beit plan`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from beit.checks import Options, PositiveFloat, PositiveInt
from beit.errors import UserError
from pipelines.config.pretrain import PretrainConfig
from pipelines.planning.forecast import DENSE_TFLOPS, STAGES, Range


@dataclass(frozen=True, kw_only=True)
class PlanConfig(PretrainConfig):
    """A pretraining to be planned, not run."""

    images: PositiveInt | None = None
    """Number of images of an epoch, if `data.train` is only a sample of them or is not given. None: the
    images in `data.train`, or the scenes."""

    cluster: str | None = None
    """File for `ray up`, such as clusters/aws.yaml, or of a RayCluster or RayJob. The plan uses its node
    types, and no more nodes than it allows. None: this machine, or the connected cluster, or `gpu`."""

    gpu: str | None = None
    """Model of the training GPUs, such as H100: plan as if the cluster's machines had these. None: the GPUs
    that they have."""

    token_gpu: str | None = None
    """Model of the tokenizers' GPUs, if tokenizers have nodes of their own. None: the GPUs of the cluster's
    machines."""

    price: str | None = None
    """Price of a node of each stage, in dollars per hour, such as
    train=10..33,tokens=0.3..0.8,views=0.3..0.7,head=0.2. None: the plan has no costs."""

    seconds: PositiveFloat = 9.0
    """Approximate duration of the measurements, in seconds."""

    def check_together(self, option: Options) -> None:
        """Refuse unknown GPUs and prices."""
        super().check_together(option)
        for name in ("gpu", "token_gpu"):
            kind = getattr(self, name)
            if kind is not None and kind not in DENSE_TFLOPS:
                raise UserError(
                    f"{option(name)}: its rate is not known", f"known are {', '.join(DENSE_TFLOPS)}"
                )
        parse_prices(self.price)


def config_of(config: PretrainConfig) -> PlanConfig:
    """The plan configuration of a pretraining."""
    return PlanConfig(
        **{field.name: getattr(config, field.name) for field in dataclasses.fields(PretrainConfig)}
    )


def parse_prices(text: str | None) -> dict[str, Range]:
    """Parse 'train=10..33,head=0.2' to the lowest and highest price of each stage's nodes, in dollars per
    hour.

    Raises:
        UserError: If the text has another form.
    """
    prices: dict[str, Range] = {}
    for item in text.split(",") if text else ():
        stage, _, amount = item.strip().partition("=")
        low, _, high = amount.partition("..")
        try:
            prices[stage] = float(low), float(high or low)
        except ValueError:
            prices[stage] = (-1.0, -1.0)
        if stage not in STAGES:
            raise UserError(
                f"--price {text}: {stage} is no stage",
                f"write STAGE=FROM..TO or STAGE=DOLLARS, of {', '.join(STAGES)}",
            )
        if not 0 <= prices[stage][0] <= prices[stage][1] < float("inf"):
            raise UserError(
                f"--price {text}: {item.strip()} is no price",
                f"write {stage}=DOLLARS an hour, or {stage}=LEAST..MOST",
            )
    return prices
