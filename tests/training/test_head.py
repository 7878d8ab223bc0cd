"""Places, vocabularies and recursed attention, against what they stand for."""

from __future__ import annotations

import torch
from torch.nn import functional

from paceline.training.head import HeadShape, Places, choose_places, default_taps, head_loss
from paceline.training.head_layers import HeadAttention, Recursion, attend
from paceline.training.stream import TokenStream
from paceline.training.vocabulary import DraftVocabulary

SHAPE = HeadShape(16, 32, 4, 2, 8, 1e-6, 10000.0)


def test_places_lie_where_a_reply_goes_on() -> None:
    tokens = torch.arange(12).unsqueeze(0)
    reply = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 0, 0, 1, 1, 0]]).bool()
    places = choose_places(tokens, reply, share=1.0, steps=2)
    counted = {int(place): flags.tolist() for place, flags in zip(places.index[0], places.counted[0], strict=True)}
    # Behind place 2 the token 3 is known, and 4 and 5 are drafted; behind place 4 the reply has one token left.
    assert {place for place, flags in counted.items() if flags[0]} == {2, 3, 4, 8}
    assert counted[2] == [True, True]
    assert counted[4] == [True, False]
    assert max(counted) == 12 - 1 - 2 - 1


def test_fewer_places_than_there_are_depend_on_the_tokens_alone() -> None:
    tokens = torch.randint(0, 50, (3, 64), generator=torch.Generator().manual_seed(0))
    reply = tokens % 4 > 0
    chosen = choose_places(tokens, reply, share=0.1, steps=2)
    again = choose_places(tokens, reply, share=0.1, steps=2)
    assert torch.equal(chosen.index, again.index)
    assert chosen.index.shape == (3, 6)
    assert chosen.counted[..., 0].all()
    assert not torch.equal(chosen.index, choose_places(tokens + 1, reply, share=0.1, steps=2).index)


def test_default_taps_are_those_of_eagle3_where_there_are_layers_enough() -> None:
    assert default_taps(32) == [2, 16, 29]
    assert default_taps(10) == [2, 5, 7]
    assert default_taps(7) == [2, 3, 4]
    assert default_taps(6) == [3, 4, 5]
    assert default_taps(3) == [0, 1, 2]


def test_the_vocabulary_holds_the_most_frequent_tokens_of_replies() -> None:
    stream = TokenStream(torch.tensor([9, 9, 9, 5, 7, 7, 3, 5, 7]), torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 1]).bool())
    vocabulary = DraftVocabulary.of([stream], 10, 2)
    assert vocabulary.ids.tolist() == [5, 7]
    assert vocabulary.offsets.tolist() == [5, 6]
    assert vocabulary.members.nonzero().squeeze(1).tolist() == [5, 7]
    assert not vocabulary.is_whole
    assert DraftVocabulary.of([stream], 10, 0).is_whole


def test_recursed_attention_equals_decoding_place_by_place() -> None:
    """A draft at place t sees the context up to t and its own steps, as if they had been appended to it there."""
    torch.manual_seed(0)
    attention = HeadAttention(SHAPE, width=16).double()
    context, own = torch.randn(2, 9, 16).double(), torch.randn(3, 2, 4, 16).double()
    index = torch.tensor([[0, 3, 4, 8], [1, 2, 5, 7]])
    places = Places(index, torch.ones(2, 4, 3, dtype=torch.bool))
    recursion = Recursion(attention, context, places)
    first = places.rows(context)
    found = [recursion.step(x) for x in (first, own[0], own[1])]
    for row in range(2):
        for number, place in enumerate(index[row].tolist()):
            inputs = torch.cat([context[row, : place + 1], own[:2, row, number]])
            positions = torch.arange(len(inputs))
            q = attention.query(inputs, positions).transpose(0, 1)
            k, v = (one.transpose(0, 1) for one in attention.key_value(inputs, positions))
            out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            expected = attention.o_proj(out.transpose(0, 1).flatten(1))[place:]
            for step in range(3):
                torch.testing.assert_close(found[step][row, number], expected[step])


def test_blocks_see_their_own_slots_in_both_directions_and_no_other_block() -> None:
    torch.manual_seed(0)
    q, keys = torch.randn(1, 2, 3, 4, 8), torch.randn(1, 7, 2, 8)
    own = torch.randn(1, 2, 3, 2, 8), torch.randn(1, 2, 3, 2, 8)
    places = Places(torch.tensor([[1, 5]]), torch.ones(1, 2, 1, dtype=torch.bool))
    found = attend(q, (keys, keys), own, places)
    for number, place in enumerate((1, 5)):
        k, v = (torch.cat([keys[0, : place + 1], one[0, number]]).transpose(0, 1) for one in own)
        expected = functional.scaled_dot_product_attention(q[0, number].transpose(0, 1), k, v, enable_gqa=True)
        torch.testing.assert_close(found[0, number], expected.transpose(0, 1).flatten(1))


def test_the_loss_is_the_divergence_over_counted_places_with_falling_weights() -> None:
    wanted, given = torch.randn(2, 1, 3, 5), torch.randn(2, 1, 3, 5)
    counted = torch.tensor([[[True, True], [True, False], [False, False]]])
    p, q = wanted.softmax(-1), given.softmax(-1)
    each = (p * (p / q).log()).sum(-1)
    expected = (each[0, 0, :2].mean() + 0.5 * each[1, 0, 0]) / 1.5
    torch.testing.assert_close(head_loss(list(wanted), list(given), counted, 0.5), expected)
    assert head_loss(list(wanted), list(wanted), counted, 0.5) < 1e-6
