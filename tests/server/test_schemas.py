"""Bodies that become calls must say how."""

from __future__ import annotations

import pytest

from paceline.server.schemas import EngineRequest, SamplingFields


@pytest.mark.parametrize("missing", ["prompts", "params"])
def test_a_body_that_leaves_something_open_cannot_be_made(missing):
    methods = {"prompts": lambda self, encoder: [], "params": lambda self, default: None}
    for base in (EngineRequest, SamplingFields):
        whole = type("Whole", (base,), methods)
        assert whole(model="m").model == "m"
        stub = type("Stub", (base,), {name: method for name, method in methods.items() if name != missing})
        with pytest.raises(TypeError, match=missing):
            stub(model="m")
