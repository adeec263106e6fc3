"""Divide several streams among one group of workers. All blocks of a stream pass through one coordinator,
which is too slow for a large group.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ray.train

from pipelines.stream.rounds import stream_of

if TYPE_CHECKING:
    from ray.actor import ActorHandle
    from ray.data import DataIterator, Dataset


def stream_name(index: int) -> str:
    """The name of a stream in Ray Train."""
    return f"train-{index}"


class DividedWorkers(ray.train.DataConfig):
    """Splits each stream among its own workers; Ray Train would split it among all workers.

    Args:
        streams: Number of streams.
    """

    def __init__(self, streams: int) -> None:
        super().__init__()
        self._streams = streams

    def configure(
        self,
        datasets: dict[str, Dataset],
        world_size: int,
        worker_handles: list[ActorHandle[Any]] | None,
        worker_node_ids: list[str] | None,
        **kwargs: Any,
    ) -> list[dict[str, DataIterator]]:
        """Return the iterators of every worker by name. A worker must only iterate over its own stream."""
        output: list[dict[str, DataIterator]] = [{} for _ in range(world_size)]
        for index in range(self._streams):
            name = stream_name(index)
            if name not in datasets:  # Ray Train asks for one at a time.
                continue
            ranks = [
                rank
                for rank in range(world_size)
                if stream_of(rank, streams=self._streams, workers=world_size) == index
            ]
            nodes = None if worker_node_ids is None else [worker_node_ids[rank] for rank in ranks]
            splits = super().configure({name: datasets[name]}, len(ranks), None, nodes, **kwargs)
            for rank in range(world_size):
                output[rank][name] = splits[ranks.index(rank) if rank in ranks else 0][name]
        return output


def own_shard(rank: int, *, streams: int, workers: int) -> DataIterator:
    """Return a worker's part of its stream. All workers have to call this: Ray Train makes each stream when
    rank 0 asks for it.
    """
    shards: list[DataIterator] = [ray.train.get_dataset_shard(stream_name(index)) for index in range(streams)]
    return shards[stream_of(rank, streams=streams, workers=workers)]
