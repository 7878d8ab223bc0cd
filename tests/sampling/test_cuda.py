"""On a GPU the noise has the same bits of Philox, and the pipeline the same invariances."""

import pytest
import torch

from paceline.kernels.philox import Domain, gumbel, gumbel_rows, uniform
from tests.sampling.test_scores import BATCH
from tests.support.seating import Room, make_request, random_logits, rows_of

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


def test_noise_on_the_gpu():
    row, token = torch.arange(3, device="cuda"), torch.arange(1003, device="cuda")
    dense = gumbel_rows(row, row, row, Domain.TARGET, 1003)
    columns = (row[:, None],) * 3
    assert torch.equal(gumbel(*columns, Domain.TARGET, token), dense)
    on_host = row[:, None].cpu()
    host = uniform(on_host, on_host, on_host, Domain.TARGET, token.cpu())
    assert torch.equal(uniform(*columns, Domain.TARGET, token).cpu(), host)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_pipeline_on_the_gpu(dtype):
    rooms = [Room(vocab=1003, device=device) for device in ("cuda", "cpu")]
    logits, found = random_logits(3 * len(BATCH), vocab=1003, dtype=dtype), []
    for room, device in zip(rooms, ("cuda", "cpu"), strict=True):
        requests = [make_request(output=[4, 5, 5], seed=seed, **controls) for seed, controls in enumerate(BATCH)]
        room.join(*requests)
        entries = [(request, path) for request in requests for path in ([], [4], [4, 7, 5])]
        placed = logits.to(device)
        tokens = room.pipeline.sample(placed, rows_of(*entries)).tolist()
        for index, entry in enumerate(entries):
            assert room.pipeline.sample(placed[index : index + 1], rows_of(entry)).tolist() == [tokens[index]]
        found.append(tokens)
    if dtype == torch.float64:
        assert found[0] == found[1]
