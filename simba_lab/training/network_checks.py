"""What a network must be able to do before it is trained: answer a volume, alone if need be."""

from __future__ import annotations

import torch

from simba_lab.core.batches import Feed
from simba_lab.core.errors import SimbaError
from simba_lab.core.network_adapter import bare_copy, copied, refuse_probabilities, responded
from simba_lab.training.networks import logit


def check_answers(model: torch.nn.Module, feed: Feed) -> None:
    """Refuse a network that fails on the volumes, or whose answers are no logits."""
    volumes = next(feed.batches([torch.arange(min(2, len(feed)))]))
    trial = bare_copy(model, volumes.device)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        answer = responded(trial, volumes)
        logit(answer)
        refuse_probabilities(trial, volumes, answer)


def check_alone(model: torch.nn.Module, feed: Feed, batch_size: int, subjects: int) -> None:
    """Refuse a network that cannot be trained on a batch of one subject, which comes last."""
    volumes = next(feed.batches([torch.arange(1)]))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            copied(model).train()(volumes)
        except ValueError as error:
            if isinstance(error, SimbaError):
                raise
            allowed = f"a number that leaves no single subject of {subjects} in a batch"
            remedy = f"Normalisation over a batch needs two of them: {error}"
            raise SimbaError("config.batch_size", batch_size, allowed, remedy) from error
