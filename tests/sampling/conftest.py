from __future__ import annotations

import pytest

from tests.support.seating import Room


@pytest.fixture(params=["auto", "torch"])
def each_sampler(request, monkeypatch) -> str:
    """Rooms sample with the best sampler for their logits, and with torch."""
    monkeypatch.setattr(Room, "sampler", request.param)
    return request.param
