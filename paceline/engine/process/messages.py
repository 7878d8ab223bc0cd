"""What parent and child say to each other, as typed MessagePack; knows nothing of sockets or of who acts on it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgspec

from paceline.core.call import CallOptions
from paceline.core.outputs import StreamUpdate
from paceline.core.params import SamplingParams
from paceline.core.token_set import TokenSet
from paceline.engine.facts import EngineFacts
from paceline.engine.process.link import LinkError, framed


class ProcessMessage(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """One frame's content."""


class Start(ProcessMessage, frozen=True):
    """The first message to a child: what ``LLM`` takes, and how often to report."""

    model: str | None
    speculative_config: dict[str, Any] | str | None
    options: dict[str, Any]
    beat_seconds: float
    num_before: int = 0
    """Children that this one takes the place of."""


class Generate(ProcessMessage, frozen=True):
    """Begins a call. ``call`` is never used twice, unlike a request id."""

    call: int
    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    options: CallOptions


class Abort(ProcessMessage, frozen=True):
    request_id: str


class AskStats(ProcessMessage, frozen=True):
    number: int


class Loaded(ProcessMessage, frozen=True):
    """The model is loaded and warm: calls may come."""

    facts: EngineFacts


class NotLoaded(ProcessMessage, frozen=True):
    """The model cannot be loaded as asked; the child ends."""

    kind: str
    """The error's class."""
    message: str


class Updated(ProcessMessage, frozen=True):
    call: int
    update: StreamUpdate


class Refused(ProcessMessage, frozen=True):
    """The call is over, or never began."""

    call: int
    message: str
    param: str | None = None
    code: str | None = None
    invalid: bool = True
    """Whether the caller is to blame."""


class StatsTold(ProcessMessage, frozen=True):
    number: int
    stats: dict[str, Any]


class Beat(ProcessMessage, frozen=True):
    """Sent at intervals, whatever the engine does."""

    busy_seconds: float
    """For how long the current step has been running; 0 without work."""


class _Call(ProcessMessage, frozen=True, tag="Generate"):
    """A ``Generate`` with what the prompts of one HTTP call have in common still encoded."""

    call: int
    request_id: str
    prompt_token_ids: list[int]
    params: msgspec.Raw
    options: msgspec.Raw


Order = Start | Generate | Abort | AskStats
Report = Loaded | NotLoaded | Updated | Refused | StatsTold | Beat


def _bits_of(value: object) -> bytes:
    """How a set of tokens is sent."""
    if not isinstance(value, TokenSet):
        raise NotImplementedError(f"{type(value).__name__} cannot be sent")
    return value.bits


_encoder = msgspec.msgpack.Encoder(enc_hook=_bits_of)
_orders: msgspec.msgpack.Decoder[Start | _Call | Abort | AskStats] = msgspec.msgpack.Decoder(
    Start | _Call | Abort | AskStats
)
_params = msgspec.msgpack.Decoder(SamplingParams)
_options = msgspec.msgpack.Decoder(CallOptions)
_calls = msgspec.msgpack.Decoder(tuple[str, int, Any, Any, Any, Any])
_reports: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)


def encode(message: ProcessMessage) -> bytes:
    """The message as a frame.

    Raises:
        FrameTooLargeError: it is larger than a frame may be.
        UnicodeEncodeError: a text in it holds a lone surrogate.
    """
    return framed(_encoder.encode(message))


class CallEncoder:
    """Encodes calls, and what the prompts of one HTTP call have in common only once."""

    def __init__(self) -> None:
        self._last: tuple[SamplingParams, CallOptions, msgspec.Raw, msgspec.Raw] | None = None

    def encode(self, call: Generate) -> bytes:
        """Raises as ``encode``; TypeError, OverflowError: a value that cannot travel."""
        last = self._last
        if last is None or last[0] is not call.params or last[1] is not call.options:
            params, options = (msgspec.Raw(_encoder.encode(part)) for part in (call.params, call.options))
            last = self._last = (call.params, call.options, params, options)
        return encode(_Call(call.call, call.request_id, call.prompt_token_ids, last[2], last[3]))


def decode_order(content: bytes) -> Order | Refused:
    """What a parent said, or how a call is refused whose content is of the wrong types: that is its caller's fault.

    Raises:
        LinkError: it is no order.
    """
    try:
        order = _orders.decode(content)
        if not isinstance(order, _Call):
            return order
        params, options = _terms(bytes(order.params), bytes(order.options))
        return Generate(order.call, order.request_id, order.prompt_token_ids, params, options)
    except msgspec.MsgspecError as error:
        call = _number_of_call(content)
        if call is not None:
            return Refused(call, f"the call has a value of the wrong type: {error}")
        raise LinkError(f"the engine's parent sent what is no order: {error}") from None


@lru_cache(2)
def _terms(params: bytes, options: bytes) -> tuple[SamplingParams, CallOptions]:
    """Kept for the other prompts of a call, which may be hundreds: checking long lists takes milliseconds."""
    return _params.decode(params), _options.decode(options)


def _number_of_call(content: bytes) -> int | None:
    try:
        call = _calls.decode(content)
    except msgspec.MsgspecError:
        return None
    return call[1] if call[0] == Generate.__name__ else None


def decode_report(content: bytes) -> Report:
    """What a child said. Raises LinkError if it is no report."""
    try:
        return _reports.decode(content)
    except msgspec.MsgspecError as error:
        raise LinkError(f"the engine's process sent what is no report: {error}") from None
