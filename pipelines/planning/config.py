"""The configuration of `beit plan`."""

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
    """Images of an epoch, where `data.train` is only a sample of them, or not given. None: those of
    `data.train`, or the scenes."""

    cluster: str | None = None
    """File for `ray up`, such as clusters/aws.yaml, or of a RayCluster or RayJob: its node types are what the
    plan counts, and no more of them than it allows. None: this machine, or the connected cluster, or
    `gpu`."""

    gpu: str | None = None
    """Kind of the training GPUs, such as H100: plans as if the cluster's machines had these. None: those that
    they have."""

    token_gpu: str | None = None
    """Kind of the tokenizers' GPUs, where they have nodes of their own. None: that of the cluster's
    machines."""

    price: str | None = None
    """Dollars an hour of a node of each stage, such as train=10..33,tokens=0.3..0.8,views=0.3..0.7,head=0.2.
    None: no costs."""

    seconds: PositiveFloat = 9.0
    """Measure about so long."""

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
    """A plan of a run."""
    return PlanConfig(
        **{field.name: getattr(config, field.name) for field in dataclasses.fields(PretrainConfig)}
    )


def parse_prices(text: str | None) -> dict[str, Range]:
    """'train=10..33,head=0.2' -> dollars an hour of a node, from and to.

    Raises:
        UserError: If it says something else.
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
