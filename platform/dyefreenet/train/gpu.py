"""What keeps a GPU busy: batches that are there when it asks, and steps without Python between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from dyefreenet.config import GridConfig, StageConfig
from dyefreenet.data.slices import Batch
from dyefreenet.train.state import TrainState

Tensors = dict[str, Tensor]
Step = Callable[[TrainState, Tensors, StageConfig, GridConfig], Tensors]

EAGER = 4  # steps before one is recorded: what is made once, as Adam's moments are, is there then


def ahead(batches: Iterator[Batch]) -> Iterator[Tensors]:
    """One batch ahead in a thread, in page-locked memory, from which a GPU copies by itself."""

    def take() -> Tensors | None:
        batch = next(batches, None)
        if batch is None:
            return None
        return {name: torch.from_numpy(values).pin_memory() for name, values in batch.items()}

    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(take)
        while (batch := coming.result()) is not None:
            coming = thread.submit(take)
            yield batch


class Replayed:
    """A step that is recorded as a CUDA graph and then replayed.

    The paper's step is a thousand kernels of some microseconds, which Python starts more slowly
    than the GPU runs them. Batches must be of one shape, and learning rates tensors.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._steps = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: Tensors = {}
        self._terms: Tensors = {}

    def __call__(
        self, state: TrainState, batch: Tensors, config: StageConfig, grid: GridConfig
    ) -> Tensors:
        """As the step itself; the terms are overwritten by the next call."""
        self._steps += 1
        if self._steps <= EAGER:
            side, main = torch.cuda.Stream(), torch.cuda.current_stream()
            side.wait_stream(main)
            with torch.cuda.stream(side):
                terms = self._step(state, batch, config, grid)
            main.wait_stream(side)
            return terms
        if self._graph is None:
            self._inputs = {name: values.clone() for name, values in batch.items()}
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._terms = self._step(state, self._inputs, config, grid)
        for name, values in batch.items():
            self._inputs[name].copy_(values)
        self._graph.replay()
        return self._terms
